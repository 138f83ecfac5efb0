// Operators of the CUDA library, bound through the LibTorch stable ABI.
//
//   ssmvdm::cuda_build_info() -> str            JSON: {"toolkit": 13000, "architectures": [800, 900]}; touches no
//   device ssmvdm::cuda_running_architecture() -> int  runs a kernel on the current device; capability times 100 of its
//   code
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>

#include "cuda/build_info.h"

namespace {

std::string cuda_build_info() {
  return "{\"toolkit\": " + std::to_string(ssmvdm::cuda::toolkit_version()) + ", \"architectures\": [" +
         ssmvdm::cuda::compiled_architectures() + "]}";
}

int64_t cuda_running_architecture() {
  int architecture = 0;
  const char* problem = ssmvdm::cuda::running_architecture(&architecture);
  STD_TORCH_CHECK(problem == nullptr, "the CUDA kernels cannot run on the current device: ", problem ? problem : "");
  return architecture;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ssmvdm, m) {
  m.def("cuda_build_info() -> str");
  m.def("cuda_running_architecture() -> int");
}

// Without tensor arguments there is no device to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(ssmvdm, CompositeExplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&cuda_build_info));
  m.impl("cuda_running_architecture", TORCH_BOX(&cuda_running_architecture));
}

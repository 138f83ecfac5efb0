// The CUDA kernels behind the operators ssmvdm::*, bound through the LibTorch stable ABI. Schemas, output shapes and
// derivatives are declared in Python, ssmvdm_kernels/ops.py. Besides:
//
//   ssmvdm::cuda_build_info() -> str            JSON: {"toolkit": 13000, "architectures": "8.0:9.0+PTX"}; touches no
//                                               device. The architectures are what the build says they are
//   ssmvdm::cuda_running_architecture() -> int  runs a kernel on the current device; capability times 100 of its code
//
// SSMVDM_EMULATED: the same for CPU tensors in a namespace of its own, with kernels compiled as C++.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <mutex>
#include <type_traits>

#include "conv_call.h"
#include "cuda/build_info.h"
#include "cuda/launch.h"
#include "s4d_call.h"
#include "scan_call.h"

#if !defined(SSMVDM_ARCHITECTURES)
#error "SSMVDM_ARCHITECTURES must say what the kernels are compiled for, as in 8.0:9.0+PTX"
#endif
#if defined(SSMVDM_EMULATED)
#include "emulator_control.h"
#define SSMVDM_NAMESPACE ssmvdm_emulated
#define SSMVDM_DISPATCH_KEY CPU
#else
#define SSMVDM_NAMESPACE ssmvdm
#define SSMVDM_DISPATCH_KEY CUDA
#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif
#endif

namespace ssmvdm {
namespace {

#if defined(SSMVDM_EMULATED)
using emulator::current_stream;
using emulator::DeviceGuard;
#else
using torch::stable::accelerator::DeviceGuard;

// A function of torch's CUDA library, which CPU builds do not have and which is therefore not linked: looked up in the
// copy that `import torch` has loaded.
void* torch_cuda_function(const char* name) {
#if defined(_WIN32)
  HMODULE library = GetModuleHandleA("torch_cuda.dll");
  return library ? reinterpret_cast<void*>(GetProcAddress(library, name)) : nullptr;
#else
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  return library ? dlsym(library, name) : nullptr;
#endif
}

void* current_stream(int32_t index) {
  using CurrentStream = AOTITorchError (*)(int32_t, void**);
  static const auto function =
      reinterpret_cast<CurrentStream>(torch_cuda_function("aoti_torch_get_current_cuda_stream"));
  STD_TORCH_CHECK(function != nullptr, "this build of torch has no CUDA streams");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(index, &stream));
  return stream;
}
#endif

// Of the current device, whose index this is.
cuda::Device limits_of(int32_t index) {
  static std::mutex mutex;
  static std::map<int32_t, cuda::Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  cuda::Device device{};
  const char* problem = cuda::device_limits(&device);
  STD_TORCH_CHECK(problem == nullptr, "the limits of the CUDA device cannot be read: ", problem ? problem : "");
  return known[index] = device;
}

std::string described(const Tensors& tensors) {
  std::string s = torch::headeronly::toString(tensors.first().scalar_type());
  for (int i = 0; i < tensors.count(); ++i)
    if (tensors[i]) s += std::string(", ") + tensors.names[i] + " " + text(shape_of(*tensors[i]));
  return s;
}

// The size of a call, beside the length, that kernels count in 32 bits.
int64_t inner_size(const ScanArgs& args) { return args.states; }
int64_t inner_size(const S4dArgs& args) { return args.modes; }
int64_t inner_size(const ConvArgs& args) { return args.width; }

template <class Args>
void run(const Tensors& tensors, const Args& args, const char* (*launcher)(const Args&, const cuda::Launch&),
         int64_t (*workspace_bytes)(const std::type_identity_t<Args>&, const cuda::Device&) = nullptr) {
  STD_TORCH_CHECK(std::max({args.channels, args.length, inner_size(args)}) <= INT32_MAX, tensors.op,
                  ": the CUDA kernels take fewer than 2^31 channels, time steps and states, but this call has ",
                  described(tensors));
  const Tensor& first = tensors.first();
  const int32_t index = first.device().index();
  const DeviceGuard guard(index);
  cuda::Launch launch{current_stream(index), limits_of(index), nullptr};
  constexpr int64_t kAlignment = 256;
  const int64_t bytes = workspace_bytes ? workspace_bytes(args, launch.device) : 0;
  const Tensor workspace = contiguous_empty({bytes ? bytes + kAlignment : 0}, ScalarType::Byte, first);
  launch.workspace = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data_ptr()) + kAlignment - 1) /
                                             kAlignment * kAlignment);
  const char* problem = launcher(args, launch);
  STD_TORCH_CHECK(problem == nullptr, tensors.op, ": the CUDA kernels cannot be launched for ", described(tensors),
                  ": ", problem ? problem : "");
}

struct Cuda {
  static constexpr Abilities kAbilities = {1, false, int64_t(1) << 31};

  static void scan_forward(const Tensors& tensors, const ScanArgs& args) {
    run(tensors, args, cuda::scan_forward, cuda::scan_forward_workspace);
  }
  static void scan_backward(const Tensors& tensors, const ScanBackwardArgs& args) {
    run(tensors, args, cuda::scan_backward, cuda::scan_backward_workspace);
  }
  static void s4d_forward(const Tensors& tensors, const S4dArgs& args) {
    run(tensors, args, cuda::s4d_forward, cuda::s4d_forward_workspace);
  }
  static void s4d_backward(const Tensors& tensors, const S4dBackwardArgs& args) {
    run(tensors, args, cuda::s4d_backward, cuda::s4d_backward_workspace);
  }
  static void conv_forward(const Tensors& tensors, const ConvArgs& args) { run(tensors, args, cuda::conv_forward); }
  static void conv_backward(const Tensors& tensors, const ConvBackwardArgs& args) {
    run(tensors, args, cuda::conv_backward, cuda::conv_backward_workspace);
  }
};

std::string cuda_build_info() {
  return "{\"toolkit\": " + std::to_string(cuda::toolkit_version()) +
         ", \"architectures\": \"" C10_STRINGIZE(SSMVDM_ARCHITECTURES) "\"}";
}

int64_t cuda_running_architecture() {
  int architecture = 0;
  const char* problem = cuda::running_architecture(&architecture);
  STD_TORCH_CHECK(problem == nullptr, "the CUDA kernels cannot run on the current device: ", problem ? problem : "");
  return architecture;
}

}  // namespace
}  // namespace ssmvdm

STABLE_TORCH_LIBRARY_FRAGMENT(SSMVDM_NAMESPACE, m) {
  m.def("cuda_build_info() -> str");
  m.def("cuda_running_architecture() -> int");
}
// Without tensor arguments there is no device to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(SSMVDM_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&ssmvdm::cuda_build_info));
  m.impl("cuda_running_architecture", TORCH_BOX(&ssmvdm::cuda_running_architecture));
}
STABLE_TORCH_LIBRARY_IMPL(SSMVDM_NAMESPACE, SSMVDM_DISPATCH_KEY, m) {
  m.impl("scan_forward", TORCH_BOX(&ssmvdm::scan_forward<ssmvdm::Cuda>));
  m.impl("scan_backward", TORCH_BOX(&ssmvdm::scan_backward<ssmvdm::Cuda>));
  m.impl("s4d_forward", TORCH_BOX(&ssmvdm::s4d_forward<ssmvdm::Cuda>));
  m.impl("s4d_backward", TORCH_BOX(&ssmvdm::s4d_backward<ssmvdm::Cuda>));
  m.impl("conv1d_forward", TORCH_BOX(&ssmvdm::conv1d_forward<ssmvdm::Cuda>));
  m.impl("conv1d_backward", TORCH_BOX(&ssmvdm::conv1d_backward<ssmvdm::Cuda>));
}

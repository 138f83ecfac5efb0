// The CPU kernels behind the operators ssmvdm::*, bound through the LibTorch stable ABI. Schemas, output shapes and
// derivatives are declared in Python, ssmvdm_kernels/ops.py.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O1")  // runs once per call, and is a sixth of the build's time
#endif

#include <torch/csrc/stable/library.h>

#include "conv_call.h"
#include "cpu/storage.h"
#include "s4d_call.h"
#include "scan_call.h"

namespace ssmvdm {
namespace {

void run_parallel(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

struct Cpu {
  static constexpr Abilities kAbilities = {kMaxLaneDims, true, INT64_MAX};

  static void scan_forward(const Tensors&, const ScanArgs& args) {
    cpu_kernels(args.compute).scan_forward(args, run_parallel);
  }
  static void scan_backward(const Tensors&, const ScanBackwardArgs& args) {
    cpu_kernels(args.compute).scan_backward(args, run_parallel);
  }
  static void s4d_forward(const Tensors&, const S4dArgs& args) {
    cpu_kernels(args.compute).s4d_forward(args, run_parallel);
  }
  static void s4d_backward(const Tensors&, const S4dBackwardArgs& args) {
    cpu_kernels(args.compute).s4d_backward(args, run_parallel);
  }
  static void conv_forward(const Tensors&, const ConvArgs& args) {
    cpu_kernels(args.compute).conv_forward(args, run_parallel);
  }
  static void conv_backward(const Tensors&, const ConvBackwardArgs& args) {
    cpu_kernels(args.compute).conv_backward(args, run_parallel);
  }
};

std::string cpu_capability() { return cpu_kernels(DType::kFloat32).name; }
double cpu_exp2_rate(int64_t vectors) { return cpu_kernels(DType::kFloat32).exp2_rate(vectors); }

}  // namespace
}  // namespace ssmvdm

STABLE_TORCH_LIBRARY_FRAGMENT(ssmvdm, m) {
  m.def("cpu_capability() -> str");
  m.def("cpu_exp2_rate(int vectors) -> float");
}
STABLE_TORCH_LIBRARY_IMPL(ssmvdm, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&ssmvdm::cpu_capability));
  m.impl("cpu_exp2_rate", TORCH_BOX(&ssmvdm::cpu_exp2_rate));
}
STABLE_TORCH_LIBRARY_IMPL(ssmvdm, CPU, m) {
  m.impl("scan_forward", TORCH_BOX(&ssmvdm::scan_forward<ssmvdm::Cpu>));
  m.impl("scan_backward", TORCH_BOX(&ssmvdm::scan_backward<ssmvdm::Cpu>));
  m.impl("s4d_forward", TORCH_BOX(&ssmvdm::s4d_forward<ssmvdm::Cpu>));
  m.impl("s4d_backward", TORCH_BOX(&ssmvdm::s4d_backward<ssmvdm::Cpu>));
  m.impl("conv1d_forward", TORCH_BOX(&ssmvdm::conv1d_forward<ssmvdm::Cpu>));
  m.impl("conv1d_backward", TORCH_BOX(&ssmvdm::conv1d_backward<ssmvdm::Cpu>));
}

// Which instruction set this machine runs: the best it has, or the one SSMVDM_CPU_ISA names if it has that.
#include "storage.h"

namespace ssmvdm {
namespace {

#if defined(__x86_64__) && defined(__GNUC__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

const CpuKernels& choose() {
  const char* wanted = getenv("SSMVDM_CPU_ISA");
  const bool any = !wanted || !*wanted;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if ((any || !strcmp(wanted, "avx512")) && has_avx512()) return kCpuAvx512;
  if ((any || !strcmp(wanted, "avx2")) && has_avx2()) return kCpuAvx2;
#endif
  (void)any;
  return kCpuBaseline;
}

}  // namespace

const CpuKernels& cpu_kernels(DType compute) {
  static const CpuKernels& float32 = choose();
  return compute == DType::kFloat64 ? kCpuFloat64 : float32;
}

}  // namespace ssmvdm

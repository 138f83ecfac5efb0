// Storage types and what the ISA namespaces share. Only C headers: an inline function of the C++ library instantiated
// under one instruction set could be the copy the linker keeps for all.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "../scan_args.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define INLINE __forceinline
#define NOINLINE __declspec(noinline)
#define UNROLL
#else
#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__GNUC__)
#define PREFETCH(p) __builtin_prefetch(p, 0, 2)
#else
#define PREFETCH(p) (void)(p)
#endif

namespace ssmvdm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Function tables, one per instruction set.
struct CpuKernels {
  const char* name;
  void (*scan_forward)(const ScanArgs&, ParallelFor);
  void (*scan_backward)(const ScanBackwardArgs&, ParallelFor);
  void (*s4d_forward)(const S4dArgs&, ParallelFor);
  void (*s4d_backward)(const S4dBackwardArgs&, ParallelFor);
  void (*conv_forward)(const ConvArgs&, ParallelFor);
  void (*conv_backward)(const ConvBackwardArgs&, ParallelFor);
  double (*exp2_rate)(int64_t vectors);  // lanes per call of the recurrence's own exponential, to measure its floor
};
extern const CpuKernels kCpuAvx512, kCpuAvx2, kCpuBaseline, kCpuFloat64;
const CpuKernels& cpu_kernels(DType compute);

}  // namespace ssmvdm

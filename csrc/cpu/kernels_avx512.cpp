#include "storage.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace ssmvdm {
namespace avx512 {
#include "convert.h"
#include "vec_avx512.h"
#include "exp2_table.h"
#include "math_float32.h"
#include "activations.h"
#include "rows.h"
#include "plan.h"
#include "blocks.h"
#include "scan_common.h"
#include "scan_inputs.h"
#include "scan_forward.h"
#include "scan_backward.h"
#include "s4d_direct.h"
#include "s4d_forward.h"
#include "s4d_backward.h"
#include "conv.h"
#include "exp2_rate.h"
}  // namespace avx512
}  // namespace ssmvdm

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

const ssmvdm::CpuKernels ssmvdm::kCpuAvx512 = {"avx512",
                                               avx512::scan_forward,
                                               avx512::scan_backward,
                                               avx512::s4d_forward,
                                               avx512::s4d_backward,
                                               avx512::conv_forward,
                                               avx512::conv_backward,
                                               avx512::exp2_rate};
#endif

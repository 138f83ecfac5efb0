#include "storage.h"

#if defined(__GNUC__)
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ssmvdm {
namespace baseline {
#include "convert.h"
#include "vec_generic.h"
#include "exp2_polynomial.h"
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
}  // namespace baseline
}  // namespace ssmvdm

#if defined(__ARM_NEON)
#define SSMVDM_BASELINE_NAME "neon"
#else
#define SSMVDM_BASELINE_NAME "baseline"
#endif
const ssmvdm::CpuKernels ssmvdm::kCpuBaseline = {
    SSMVDM_BASELINE_NAME,   baseline::scan_forward, baseline::scan_backward, baseline::s4d_forward,
    baseline::s4d_backward, baseline::conv_forward, baseline::conv_backward, baseline::exp2_rate};
#endif

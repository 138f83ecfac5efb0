#include "storage.h"

namespace ssmvdm {
namespace float64 {
#include "convert.h"
#include "vec_float64.h"
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
}  // namespace float64
}  // namespace ssmvdm

const ssmvdm::CpuKernels ssmvdm::kCpuFloat64 = {"float64",
                                                float64::scan_forward,
                                                float64::scan_backward,
                                                float64::s4d_forward,
                                                float64::s4d_backward,
                                                float64::conv_forward,
                                                float64::conv_backward,
                                                float64::exp2_rate};

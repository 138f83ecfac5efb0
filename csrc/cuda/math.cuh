// Functions of one number that are evaluated per element, not per state. A few units in the last place, as accurate as
// eager float32: the special function units are used where their error is relative, and corrected where it is not.
#pragma once

#include "cuda/cuda_compat.h"

namespace ssmvdm::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// e^-|x|; beyond 100 it has nothing left to lose, and a NaN stays one. The rounding error of |x| log2 e, which would be
// multiplied with |x|, is put back.
__device__ inline float exp_of_minus_abs(float x) {
  constexpr float kLog2ELow = 1.9259629911266175e-8f;  // log2 e - kLog2E
  x = fabsf(x) > 100.f ? 100.f : fabsf(x);
  const float high = x * kLog2E;
  const float low = fmaf(x, -kLog2ELow, fmaf(x, -kLog2E, high));
  const float power = exp2_approx(-high);
  return fmaf(power, low * kLn2, power);
}

// 1 / (1 + e^-x), known to 6 + 2 |x| units of 2^-24, as in eager float32.
__device__ inline float sigmoid(float x) { return reciprocal_approx(1.f + exp2_approx(x * -kLog2E)); }

// silu(x) = x sigmoid(x), and its derivative.
__device__ inline float silu(float x) { return x * sigmoid(x); }
__device__ inline float silu(float x, float* slope) {
  const float s = sigmoid(x), y = x * s;
  *slope = fmaf(y, 1.f - s, s);
  return y;
}
__device__ inline float silu_slope(float x) {
  float slope;
  silu(x, &slope);
  return slope;
}

// log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|; log(1 + e) = 2 artanh(e / (2 + e)) as a series.
__device__ inline float softplus(float x, float e) {
  const float s = e * reciprocal_approx(2.f + e), q = s * s;
  float series = fmaf(q, 2.f / 13.f, 2.f / 11.f);
  series = fmaf(q, series, 2.f / 9.f);
  series = fmaf(q, series, 2.f / 7.f);
  series = fmaf(q, series, 2.f / 5.f);
  series = fmaf(q, series, 2.f / 3.f);
  series = fmaf(q, series, 2.f);
  return fmaf(s, series, x > 0.f ? x : 0.f);
}
__device__ inline float softplus(float x) { return softplus(x, exp_of_minus_abs(x)); }

// The same and its derivative, sigmoid(x).
__device__ inline float softplus(float x, float* slope) {
  const float e = exp_of_minus_abs(x), r = reciprocal_approx(1.f + e);
  *slope = x < 0.f ? e * r : r;
  return softplus(x, e);
}

}  // namespace ssmvdm::cuda

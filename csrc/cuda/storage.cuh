// Tensors as kernels see them: storage types and strides.
#pragma once

#include "cuda/cuda_compat.h"
#include "scan_args.h"

namespace ssmvdm::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// A (batch, [groups,] rows, length, lanes) tensor; strides count elements.
struct Strided {
  void* data;
  int64_t batch, group, row, time, lane;
  int64_t groups;

  __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

inline Strided strided(const SequenceView& view) {
  const int64_t lane = view.lane_dims ? view.lane_stride[0] : 0;
  return {view.data, view.batch_stride, view.group_stride, view.row_stride, view.time_stride, lane, view.groups};
}

template <class T>
__device__ inline T* element(const Strided& tensor, int64_t offset) {
  return static_cast<T*>(tensor.data) + offset;
}

struct Quotient {
  int64_t whole, rest;
};
// By 32-bit arithmetic, which takes a quarter of the instructions, where that is enough. Both not negative.
__device__ inline Quotient divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const uint32_t quotient = uint32_t(a) / uint32_t(b);
    return {int64_t(quotient), int64_t(uint32_t(a) - quotient * uint32_t(b))};
  }
  return {a / b, a % b};
}

// Calls f with a value of the storage type.
template <class F>
auto with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    case DType::kFloat16:
      return f(__half{});
    default:
      return f(float{});
  }
}

}  // namespace ssmvdm::cuda

// The second stage of sums over sequences: what blocks have left in partial sums is added up in a fixed order.
#pragma once

#include "cuda/cuda_compat.h"

namespace ssmvdm::cuda {

constexpr int kSlices = 8;  // threads that share one total

// For each index < count: put(index, sum over part < parts of value(index, part)). Blocks of 32 * kSlices threads.
template <class Value, class Put>
__device__ inline void sum_parts(int64_t count, int64_t parts, const Value& value, const Put& put) {
  __shared__ float sums[kSlices][32];
  const int column = int(threadIdx.x) % 32, slice = int(threadIdx.x) / 32;
  for (int64_t first = int64_t(blockIdx.x) * 32; first < count; first += int64_t(gridDim.x) * 32) {
    const int64_t index = first + column;
    float sum = 0.f;
    if (index < count)
#pragma unroll 4  // so many loads at a time
      for (int64_t part = slice; part < parts; part += kSlices) sum += value(index, part);
    sums[slice][column] = sum;
    __syncthreads();
    if (slice == 0 && index < count) {
#pragma unroll
      for (int i = 1; i < kSlices; ++i) sum += sums[i][column];
      put(index, sum);
    }
    __syncthreads();
  }
}

}  // namespace ssmvdm::cuda

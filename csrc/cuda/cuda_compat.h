// Where kernels meet the CUDA toolchain. A .cu file includes this, plain argument structs and nothing else: no torch
// header, so nvcc compiles it on a machine whose torch is a CPU build, and any other compiler that supplies these names
// can stand in for nvcc.
//
// Kernels keep to what every such stand-in can check: launches, dynamic shared memory, approximate mathematics and
// PTX only through this header; no thread returns before the block's last barrier or the warp's last shuffle; barriers
// under conditions that are uniform in the block, shuffles in the warp; full masks; blocks never wait for each other.
#pragma once

#if defined(SSMVDM_EMULATED)
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// The dynamic shared memory of a block, as an array of `type`. Once per kernel.
#define SSMVDM_SHARED(type, name)                                      \
  extern __shared__ __align__(16) unsigned char ssmvdm_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(ssmvdm_shared_memory)

namespace ssmvdm::cuda {

// Approximations of the special function units; denormal inputs and results are taken for zero.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Barrier `id` (1 .. 15; 0 is __syncthreads) of `threads` threads, a multiple of 32.
__device__ inline void barrier_of(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Said by a kernel: what its __launch_bounds__ allow. On a device the launch of a larger block fails; a stand-in, which
// does not know the bounds, hears of them here.
__device__ inline void has_at_most(int /*threads*/) {}

// Launches on `stream` and returns the launch's own error, so that a failure is reported where it happened and not by
// the next unrelated call.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {
    // All that the device allows, not what this call takes: the kernel has one such setting, for the calls of other
    // threads too, which could come between it and the launch, and for graphs.
    int device = 0, most = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
      status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status == cudaSuccess)
      status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    most);
    if (status != cudaSuccess) return status;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

}  // namespace ssmvdm::cuda
#endif

namespace ssmvdm::cuda {

// What a launcher returns: null, or the runtime's words.
inline const char* sentence(cudaError_t status) {
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace ssmvdm::cuda

// Where kernels meet the CUDA toolchain. A .cu file includes this, plain argument structs and nothing else: no torch
// header, so nvcc compiles it on a machine whose torch is a CPU build, and any other compiler that supplies these names
// can stand in for nvcc.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace ssmvdm::cuda {

// Launches on `stream` and returns the launch's own error, so that a failure is reported where it happened and not by
// the next unrelated call.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

}  // namespace ssmvdm::cuda

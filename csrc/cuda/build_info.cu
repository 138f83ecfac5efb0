// Reports which of the architectures in this library the driver picks on a device. A library built for the wrong ones
// otherwise shows itself only as "no kernel image is available" in the first real call.
#include "cuda/build_info.h"

#include "cuda/cuda_compat.h"

namespace ssmvdm::cuda {
namespace {

__global__ void store_architecture(int* architecture) {
#ifdef __CUDA_ARCH__
  *architecture = __CUDA_ARCH__;
#endif
}

}  // namespace

int toolkit_version() { return CUDART_VERSION; }

const char* running_architecture(int* architecture) {
  int* on_device = nullptr;
  cudaError_t status = cudaMalloc(&on_device, sizeof(int));
  if (status == cudaSuccess) status = launch(store_architecture, dim3(1), dim3(1), 0, cudaStream_t{}, on_device);
  if (status == cudaSuccess) status = cudaMemcpy(architecture, on_device, sizeof(int), cudaMemcpyDeviceToHost);
  cudaFree(on_device);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace ssmvdm::cuda

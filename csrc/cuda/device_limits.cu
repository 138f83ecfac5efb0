// What decides how a call is divided among the blocks of a device.
#include "cuda/cuda_compat.h"
#include "cuda/launch.h"

namespace ssmvdm::cuda {

const char* device_limits(Device* device) {
  int index = 0;
  cudaError_t status = cudaGetDevice(&index);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace ssmvdm::cuda

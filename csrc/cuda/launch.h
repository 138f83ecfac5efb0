// What the CUDA kernels offer to whoever holds tensors. Plain C++: included by the launchers and by the torch binding.
#pragma once

#include "scan_args.h"

namespace ssmvdm::cuda {

// Limits of a device that decide how a call is divided.
struct Device {
  int32_t multiprocessors;
  int32_t shared_bytes;  // dynamic shared memory that one block can have at most

  // The same of a block that takes part / whole of a multiprocessor, which keeps a KiB of its memory for each block.
  int64_t shared_bytes_of(int64_t part, int64_t whole) const { return (shared_bytes + 1024) * part / whole - 1024; }
};

// Of the current device. Returns null, or the CUDA runtime's sentence on what failed, as every launcher does.
const char* device_limits(Device* device);

struct Launch {
  void* stream;  // cudaStream_t
  Device device;
  void* workspace;  // as many bytes as the function below says for this call, aligned to 256; may hold anything
};

// Launchers enqueue on the stream and return. They expect what the binding has checked: pointers of the current device,
// float32, bfloat16 or float16 storage, float32 parameters, every view with one lane axis at most (`lane_dims <= 1`)
// and rows that span less than 2^31 elements, at least one sequence and one channel. Results do not depend on what the
// workspace held.
int64_t scan_forward_workspace(const ScanArgs& args, const Device& device);
const char* scan_forward(const ScanArgs& args, const Launch& launch);
int64_t scan_backward_workspace(const ScanBackwardArgs& args, const Device& device);
const char* scan_backward(const ScanBackwardArgs& args, const Launch& launch);

int64_t s4d_forward_workspace(const S4dArgs& args, const Device& device);
const char* s4d_forward(const S4dArgs& args, const Launch& launch);
int64_t s4d_backward_workspace(const S4dBackwardArgs& args, const Device& device);
const char* s4d_backward(const S4dBackwardArgs& args, const Launch& launch);

const char* conv_forward(const ConvArgs& args, const Launch& launch);
int64_t conv_backward_workspace(const ConvBackwardArgs& args, const Device& device);
const char* conv_backward(const ConvBackwardArgs& args, const Launch& launch);

}  // namespace ssmvdm::cuda

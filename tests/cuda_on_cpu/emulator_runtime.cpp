// The device of the emulator: its settings and limits, its inaccurate functions, and the calls of the CUDA runtime that
// launchers make.
#include <cstdlib>
#include <utility>

#include "cuda_emulator.h"

namespace ssmvdm::emulator {

Settings& settings() {
  static Settings value;
  return value;
}
Counters& counters() {
  static Counters value{};
  return value;
}
Outcome& last_outcome() {
  static Outcome value;
  return value;
}

int32_t& current_device() {
  static int32_t value = 0;
  return value;
}
void* stream_of(int32_t device) {
  static char streams[2];
  return device == 0 ? nullptr : streams + device;
}
void* current_stream(int32_t) { return stream_of(1); }
DeviceGuard::DeviceGuard(int32_t) : before_(std::exchange(current_device(), 1)) {}
DeviceGuard::~DeviceGuard() { current_device() = before_; }
bool takes(const void* stream) {
  const int32_t device = current_device();
  if (stream == stream_of(device)) return true;
  const std::string current = std::to_string(device), other = std::to_string(1 - device);
  last_outcome() = {cudaErrorInvalidResourceHandle,
                    stream == stream_of(1 - device)
                        ? "a kernel was launched on the stream of device " + other + ", the current one is " + current
                        : "a kernel was launched on a stream that no device has"};
  return false;
}

float unit_error(float x) {
  if (settings().exact_functions) return 0.f;
  return uint32_t(to_bits(x)) * 2654435761u >> 31 ? 1.f : -1.f;
}

// As the device checks it; a grid of more than 65,535 in y or z is the classic mistake.
std::string problem_of(dim3 grid, dim3 block, std::size_t shared_bytes) {
  const auto text = [](dim3 size) {
    return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
  };
  const uint64_t count = uint64_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
    return "a grid has 1 .. 2147483647, 65535, 65535 blocks, not " + text(grid);
  if (count == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 || count > 1024)
    return "a block has 1 .. 1024 threads, at most 64 in z, not " + text(block);
  if (shared_bytes > std::size_t(settings().shared_bytes))
    return "a block has at most " + std::to_string(settings().shared_bytes) + " bytes of shared memory, not " +
           std::to_string(shared_bytes);
  return "";
}

}  // namespace ssmvdm::emulator

using namespace ssmvdm::emulator;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_outcome().error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  const std::string& words = last_outcome().words;
  return words.empty() ? "an error that the emulator did not cause" : words.c_str();
}
cudaError_t cudaGetDevice(int* index) {
  *index = current_device();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMultiProcessorCount)
    *value = settings().multiprocessors;
  else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin)
    *value = settings().shared_bytes;
  else
    return last_outcome().words = "the emulator does not know this device attribute", cudaErrorInvalidValue;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = std::calloc(bytes, 1);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

}  // extern "C"

// What a program that runs kernels on the emulator can set and read. Plain C++.
#pragma once

#include <cstdint>

namespace ssmvdm::emulator {

enum class Order : int32_t { kForward, kReverse, kRandom };

struct Settings {
  int32_t multiprocessors = 2;
  int32_t shared_bytes = 227 * 1024;  // that a block can have
  Order order = Order::kForward;      // of blocks, and of threads between barriers
  uint32_t seed = 1;                  // of the random order
  bool exact_functions = false;       // approximate functions are as accurate as the C library's
};
Settings& settings();

// What happened since they were last set to zero; atomics count accesses, not instructions.
struct Counters {
  int64_t launches, blocks, atomics, barriers, warp_operations;
};
Counters& counters();

// At first device 0, whose only stream is null: so launches a program that knows no others. Tensors are on device 1:
// whoever has them makes it the current one and launches on its stream. Not per thread, as on a device: of what a thread
// has for itself the emulator makes shared memory.
int32_t& current_device();
void* stream_of(int32_t device);
void* current_stream(int32_t tensor_device);
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t tensor_device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  const int32_t before_;
};

}  // namespace ssmvdm::emulator

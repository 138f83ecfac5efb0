// Stands in for nvcc and the CUDA runtime, so that a .cu file compiled as C++ runs its kernels on the CPU. It supplies
// what csrc/cuda/cuda_compat.h supplies for a device, and the built-in names of CUDA C++ that the kernels use.
//
//   threads   Each thread of a block is a fiber. Blocks run one after the other on the thread that launches, fibers in
//             the order that `settings().order` names, switching only at barriers and warp operations.
//   types     NVIDIA's own headers, so that float16 and bfloat16 round and vectors align as on the device.
//   shared    Dynamic shared memory has exactly the bytes asked for. It and static shared arrays hold NaN at first.
//   errors    A misuse that a device would answer with a hang or with wrong numbers stops the launch with
//             cudaErrorLaunchFailure, and cudaGetErrorString then tells what happened and where.
//
// The same sources are compiled in three ways (build.py): fast; with AddressSanitizer and UndefinedBehaviorSanitizer;
// and with the race checker of emulator_races.cpp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>

#include "emulator_control.h"

#undef __shared__
#undef __constant__
#undef __grid_constant__
#undef __launch_bounds__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
// Blocks run one at a time, so a static is shared by a block. Those of a thread lie together, where they can be filled
// with NaN and told apart from global memory; AddressSanitizer puts guards only around the other kind.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define SSMVDM_SHARED(type, name) type* const name = static_cast<type*>(ssmvdm::emulator::shared_memory())

// This header is part of the machine, not of the program whose memory accesses are checked.
#define SSMVDM_UNCHECKED __attribute__((no_sanitize("thread")))
// Every operation that threads take together knows where in the source it was written.
#define SSMVDM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// The kernels know them as constants.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace ssmvdm::emulator {

void* shared_memory();
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Waits for `threads` threads at barrier `id`. Of barrier 0 all must be at the same place in the source.
void block_barrier(int id, int threads, const char* file, int line);

enum class WarpOperation : int32_t { kBarrier, kShuffle, kVote };
// Waits for the lanes of `mask` at the same operation; returns what lane `source` gave, for a vote the ballot.
uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t value, int source, const char* file, int line);

void note_atomic(const void* address, std::size_t bytes, const void* code);

cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(const void*), const void* context);

// Of the last launch. `words` say what was wrong with it, empty: nothing.
struct Outcome {
  cudaError_t error = cudaSuccess;
  std::string words;
};
Outcome& last_outcome();

// What a device would refuse of a launch, in words.
std::string problem_of(dim3 grid, dim3 block, std::size_t shared_bytes);
// Whether work on this stream runs on the current device, after what its tensors still wait for.
bool takes(const void* stream);

SSMVDM_UNCHECKED inline int lane_of_thread() {
  return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31;
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Lanes whose source is outside their part of the warp keep their own value.
template <class T>
SSMVDM_UNCHECKED T shuffle(unsigned mask, T value, int source, int width, const char* file, int line) {
  const int lane = lane_of_thread();
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail("%s:%d: the width of a shuffle is a power of two up to 32, not %d", file, line, width);
  const bool is_inside = source >= 0 && source / width == lane / width;
  return from_bits<T>(
      warp_operation(WarpOperation::kShuffle, mask, to_bits(value), is_inside ? source : lane, file, line));
}

// -- approximate functions --------------------------------------------------------------------------------------------
//
// As inaccurate as the PTX reference allows, and the same for the same argument: the exact result is moved by the whole
// allowed error, up or down by a hash of the argument. Exact are the arguments for which the reference says so, and all
// if the settings ask for it.

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }
// The error of a function that may be off by one, for the argument x: -1, 1, or 0.
float unit_error(float x);
// The neighbour `steps` units in the last place away, if x lets it be.
inline float displaced(float exact, float x, int32_t steps) {
  if (!(std::fabs(exact) >= 0x1p-126f && std::fabs(exact) < 0x1p127f)) return exact;
  return from_bits<float>(uint32_t(to_bits(exact)) + uint32_t(int32_t(unit_error(x)) * steps));
}

}  // namespace ssmvdm::emulator

namespace ssmvdm::cuda {

// At most 2 units in the last place; 2^0 is exact.
inline float exp2_approx(float x) {
  x = emulator::flushed(x);
  return x == 0.f ? 1.f : emulator::flushed(emulator::displaced(std::exp2f(x), x, 2));
}
// At most 1 unit in the last place; powers of two are exact.
inline float reciprocal_approx(float x) {
  x = emulator::flushed(x);
  int exponent;
  const float exact = 1.f / x;
  return emulator::flushed(std::fabs(std::frexp(x, &exponent)) == 0.5f ? exact : emulator::displaced(exact, x, 1));
}

inline void barrier_of(int id, int threads, SSMVDM_HERE) {
  if (id < 1 || id > 15) emulator::fail("%s:%d: named barriers are 1 .. 15, not %d", file, line, id);
  emulator::block_barrier(id, threads, file, line);
}

SSMVDM_UNCHECKED inline void has_at_most(int threads, SSMVDM_HERE) {
  const int count = int(blockDim.x * blockDim.y * blockDim.z);
  if (count > threads)
    emulator::fail("%s:%d: a block of %d threads, and the launch bounds allow %d", file, line, count, threads);
}

// Launches at once: the device has no other work. The stream must be the one of the current device all the same.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  if (!emulator::takes(stream)) return cudaErrorInvalidResourceHandle;
  using Values = std::tuple<void (*)(Parameters...), Parameters...>;
  const Values values(kernel, static_cast<Parameters>(arguments)...);
  const auto body = [](const void* context) {
    std::apply([](auto function, const auto&... value) { function(value...); }, *static_cast<const Values*>(context));
  };
  return emulator::run(grid, block, shared_bytes, body, &values);
}

}  // namespace ssmvdm::cuda

// -- CUDA's built-in names --------------------------------------------------------------------------------------------

inline void __syncthreads(SSMVDM_HERE) { ssmvdm::emulator::block_barrier(0, 0, file, line); }
inline void __syncwarp(unsigned mask = ~0u, SSMVDM_HERE) {
  ssmvdm::emulator::warp_operation(ssmvdm::emulator::WarpOperation::kBarrier, mask, 0, -1, file, line);
}
template <class T>
SSMVDM_UNCHECKED T __shfl_sync(unsigned mask, T value, int source, int width = 32, SSMVDM_HERE) {
  const int base = ssmvdm::emulator::lane_of_thread() & -width;
  return ssmvdm::emulator::shuffle(mask, value, base + (source & (width - 1)), width, file, line);
}
template <class T>
SSMVDM_UNCHECKED T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SSMVDM_HERE) {
  return ssmvdm::emulator::shuffle(mask, value, ssmvdm::emulator::lane_of_thread() ^ bits, width, file, line);
}
template <class T>
SSMVDM_UNCHECKED T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, SSMVDM_HERE) {
  return ssmvdm::emulator::shuffle(mask, value, ssmvdm::emulator::lane_of_thread() + int(by), width, file, line);
}
template <class T>
SSMVDM_UNCHECKED T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, SSMVDM_HERE) {
  return ssmvdm::emulator::shuffle(mask, value, ssmvdm::emulator::lane_of_thread() - int(by), width, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SSMVDM_HERE) {
  using ssmvdm::emulator::WarpOperation;
  return unsigned(ssmvdm::emulator::warp_operation(WarpOperation::kVote, mask, predicate != 0, -1, file, line));
}
inline int __any_sync(unsigned mask, int predicate, SSMVDM_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SSMVDM_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

// Atomics are ordinary accesses, as blocks and threads never run at the same time, that are counted and marked.
template <class T>
__attribute__((noinline)) SSMVDM_UNCHECKED T atomicAdd(T* address, std::common_type_t<T> value) {
  ssmvdm::emulator::note_atomic(address, sizeof(T), __builtin_return_address(0));
  const T before = *address;
  *address = T(before + value);
  return before;
}

template <class T>
constexpr T min(T a, std::common_type_t<T> b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, std::common_type_t<T> b) {
  return a < b ? b : a;
}

// Kernels that are right or wrong on purpose, to prove that each checker bites. Every one is to exchange the numbers of
// neighbouring threads, out[i] = in[i ^ 1]; the wrong form has one mistake.
#include "cuda/cuda_compat.h"

#include <string>
#include <vector>

#include "emulator_control.h"

namespace {

using namespace ssmvdm::cuda;

constexpr int kThreads = 128, kBlocks = 3, kCount = kThreads * kBlocks;

// Where a thread stands. `mirrored` is the index of the thread that stands as far from the other end of the block.
struct Here {
  int thread, last, index, mirrored;
  __device__ Here()
      : thread(int(threadIdx.x)),
        last(kThreads - 1),
        index(int(blockIdx.x * blockDim.x + threadIdx.x)),
        mirrored(index - thread + last - thread) {}
};

// -- barriers and races -----------------------------------------------------------------------------------------------

template <bool kWrong>
__global__ void missing_barrier(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread] = in[at.mirrored];
  if (!kWrong) __syncthreads();
  out[at.index] = shared[at.last - (at.thread ^ 1)];
}

template <bool kWrong>
__global__ void missing_second_barrier(float* out, const float* in) {
  __shared__ float tile[kThreads];
  const Here at;
  for (int round = 0; round < 2; ++round) {
    tile[at.thread] = in[at.index];
    __syncthreads();
    out[at.index] = tile[at.thread ^ 1];
    if (!kWrong) __syncthreads();
  }
}

template <bool kWrong>
__global__ void missing_syncwarp(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread] = in[at.index];
  if (!kWrong) __syncwarp();
  out[at.index] = shared[at.thread ^ 1];
}

template <bool kWrong>
__global__ void shuffle_for_a_barrier(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread] = in[at.index];
  if (kWrong)
    __shfl_xor_sync(~0u, at.thread, 1);
  else
    __syncwarp();
  out[at.index] = shared[at.thread ^ 1];
}

// Each half of the block meets, but what is read comes from the other half.
template <bool kWrong>
__global__ void barrier_of_others(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread] = in[at.mirrored];
  if (kWrong)
    barrier_of(1 + at.thread / 64, 64);
  else
    barrier_of(1, kThreads);
  out[at.index] = shared[at.last - (at.thread ^ 1)];
}

template <bool kWrong>
__global__ void blocks_write_one_place(float* out, const float* in) {
  const Here at;
  out[kWrong ? at.index % kThreads : at.index] = in[at.index ^ 1];
}

template <bool kWrong>
__global__ void block_reads_another(float* out, const float* in) {
  const Here at;
  const int own = at.index % kThreads + (kWrong ? int(kBlocks - 1 - blockIdx.x) : int(blockIdx.x)) * kThreads;
  out[at.index] = in[at.index ^ 1];
  __syncthreads();
  out[at.index] = out[own];
}

template <bool kWrong>
__global__ void sum_by_atomics(float* out, const float* in) {
  const Here at;
  out[at.index] = in[at.index ^ 1];
  if (kWrong) atomicAdd(out + at.index, 0.f);
}

// -- deadlocks and divergence -----------------------------------------------------------------------------------------

template <bool kWrong>
__global__ void exit_before_a_barrier(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  if (kWrong && at.index >= kCount - 5) return;
  shared[at.thread] = in[at.index];
  __syncthreads();
  out[at.index] = shared[at.thread ^ 1];
}

template <bool kWrong>
__global__ void barrier_in_a_branch(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread] = in[at.index];
  if (kWrong && at.thread < 64)
    __syncthreads();
  else
    __syncthreads();
  out[at.index] = shared[at.thread ^ 1];
}

template <bool kWrong>
__global__ void barrier_without_a_warp(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread] = in[at.index];
  if (!kWrong || at.thread < 64) barrier_of(2, kThreads);
  out[at.index] = shared[at.thread ^ 1];
}

template <bool kWrong>
__global__ void barrier_counts_differ(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread] = in[at.index];
  barrier_of(2, kWrong && at.thread < 64 ? 64 + 32 : kThreads);
  out[at.index] = shared[at.thread ^ 1];
}

template <bool kWrong>
__global__ void shuffle_without_a_lane(float* out, const float* in) {
  const Here at;
  if (kWrong && at.thread % 32 < 2) {
    out[at.index] = in[at.index ^ 1];
    return;
  }
  out[at.index] = __shfl_xor_sync(~0u, in[at.index], 1);
}

template <bool kWrong>
__global__ void shuffles_do_not_match(float* out, const float* in) {
  const Here at;
  if (kWrong && at.thread % 32 < 16)
    out[at.index] = __shfl_xor_sync(~0u, in[at.index], 1);
  else
    out[at.index] = __shfl_xor_sync(~0u, in[at.index], 1);
}

template <bool kWrong>
__global__ void mask_without_the_source(float* out, const float* in) {
  const Here at;
  const unsigned half = at.thread % 2 ? 0xaaaaaaaau : 0x55555555u;
  out[at.index] = __shfl_xor_sync(kWrong ? half : ~0u, in[at.index], 1);
}

template <bool kWrong>
__global__ void mask_without_the_lane(float* out, const float* in) {
  const Here at;
  out[at.index] = __shfl_xor_sync(kWrong ? 0x7fffffffu : ~0u, in[at.index], 1);
}

// -- memory -----------------------------------------------------------------------------------------------------------

template <bool kWrong>
__global__ void read_past_the_end(float* out, const float* in) {
  const Here at;
  out[at.index] = in[at.index ^ 1] + (kWrong ? 0.f * in[at.index + 1] : 0.f);
}

template <bool kWrong>
__global__ void write_before_the_start(float* out, const float* in) {
  const Here at;
  if (kWrong && at.index == 0) out[-1] = 0.f;
  out[at.index] = in[at.index ^ 1];
}

template <bool kWrong>
__global__ void past_dynamic_shared_memory(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  shared[at.thread + kWrong] = in[at.index];
  __syncthreads();
  out[at.index] = shared[(at.thread ^ 1) + kWrong];
}

template <bool kWrong>
__global__ void past_static_shared_memory(float* out, const float* in) {
  __shared__ float tile[kThreads];
  const Here at;
  tile[at.thread + kWrong] = in[at.index];
  __syncthreads();
  out[at.index] = tile[(at.thread ^ 1) + kWrong];
}

template <bool kWrong>
__global__ void past_static_shared_memory_by_pointer(float* out, const float* in) {
  __shared__ float tile[kThreads];
  const Here at;
  float* const place = tile + kWrong;
  place[at.thread] = in[at.index];
  __syncthreads();
  out[at.index] = place[at.thread ^ 1];
}

template <bool kWrong>
__global__ void dynamic_shared_not_written(float* out, const float* in) {
  SSMVDM_SHARED(float, shared);
  const Here at;
  if (!kWrong || at.thread > 0) shared[at.thread] = in[at.index];
  __syncthreads();
  out[at.index] = shared[at.thread ^ 1];
}

template <bool kWrong>
__global__ void static_shared_not_written(float* out, const float* in) {
  __shared__ float tile[kThreads];
  const Here at;
  if (!kWrong || at.thread > 0) tile[at.thread] = in[at.index];
  __syncthreads();
  out[at.index] = tile[at.thread ^ 1];
}

template <bool kWrong>
__global__ void misaligned_vector(float* out, const float* in) {
  const Here at;
  const int first = at.index / 2 * 2;
  if (kWrong && first + 3 < kCount) {
    const float4 four = *reinterpret_cast<const float4*>(in + first);
    out[at.index] = at.index % 2 ? four.x : four.y;
    return;
  }
  const float2 pair = *reinterpret_cast<const float2*>(in + first);
  out[at.index] = at.index % 2 ? pair.x : pair.y;
}

template <bool kWrong>
__global__ void offset_beyond_32_bits(float* out, const float* in) {
  const Here at;
  using Offset = std::conditional_t<kWrong, int, long long>;
  const Offset row = Offset(at.index) * (1 << 24);  // of a tensor whose rows are that far apart
  out[at.index] = in[(row >> 24) ^ 1];
}

template <bool kWrong>
__global__ void block_beyond_launch_bounds(float* out, const float* in) {
  has_at_most(kWrong ? kThreads / 2 : kThreads);
  const Here at;
  out[at.index] = in[at.index ^ 1];
}

// -- launches ---------------------------------------------------------------------------------------------------------

template <bool kWrong>
__global__ void right(float* out, const float* in) {
  const Here at;
  if (at.index < kCount && blockIdx.y == 0) out[at.index] = in[at.index ^ 1];
}

using Kernel = void (*)(float*, const float*);
struct Fault {
  const char* name;
  Kernel kernel[2];  // right, wrong
  dim3 grid = kBlocks, block = kThreads;
  std::size_t shared_bytes = kThreads * sizeof(float);
  int32_t device = 0;  // whose stream it is launched on; device 0 is the current one
};
#define SSMVDM_FAULT(name)             \
  {                                    \
    #name, { name<false>, name<true> } \
  }
const Fault kFaults[] = {
    SSMVDM_FAULT(missing_barrier),
    SSMVDM_FAULT(missing_second_barrier),
    SSMVDM_FAULT(missing_syncwarp),
    SSMVDM_FAULT(shuffle_for_a_barrier),
    SSMVDM_FAULT(barrier_of_others),
    SSMVDM_FAULT(blocks_write_one_place),
    SSMVDM_FAULT(block_reads_another),
    SSMVDM_FAULT(sum_by_atomics),
    SSMVDM_FAULT(exit_before_a_barrier),
    SSMVDM_FAULT(barrier_in_a_branch),
    SSMVDM_FAULT(barrier_without_a_warp),
    SSMVDM_FAULT(barrier_counts_differ),
    SSMVDM_FAULT(shuffle_without_a_lane),
    SSMVDM_FAULT(shuffles_do_not_match),
    SSMVDM_FAULT(mask_without_the_source),
    SSMVDM_FAULT(mask_without_the_lane),
    SSMVDM_FAULT(read_past_the_end),
    SSMVDM_FAULT(write_before_the_start),
    SSMVDM_FAULT(past_dynamic_shared_memory),
    SSMVDM_FAULT(past_static_shared_memory),
    SSMVDM_FAULT(past_static_shared_memory_by_pointer),
    SSMVDM_FAULT(dynamic_shared_not_written),
    SSMVDM_FAULT(static_shared_not_written),
    SSMVDM_FAULT(misaligned_vector),
    SSMVDM_FAULT(offset_beyond_32_bits),
    SSMVDM_FAULT(block_beyond_launch_bounds),
    {"grid_too_high", {right<false>, right<true>}, dim3(kBlocks, 65536)},
    {"block_too_large", {right<false>, right<true>}, kBlocks, 1025},
    {"too_much_shared_memory", {right<false>, right<true>}, kBlocks, kThreads, 227 * 1024 + 1},
    {"stream_of_another_device", {right<false>, right<true>}, kBlocks, kThreads, 0, 1},
};

std::string text;

const char* verdict(const Fault& fault, bool is_wrong) {
  const bool is_of_launch = fault.kernel[false] == right<false>;
  const Fault& shape = is_of_launch && !is_wrong ? kFaults[0] : fault;
  std::vector<float> in(kCount), out(kCount, -1.f);
  for (int i = 0; i < kCount; ++i) in[i] = float(i);
  ssmvdm::emulator::counters() = {};
  const cudaError_t status = launch(fault.kernel[is_wrong], shape.grid, shape.block, shape.shared_bytes,
                                    static_cast<cudaStream_t>(ssmvdm::emulator::stream_of(shape.device)), out.data(),
                                    in.data());
  text = status == cudaSuccess ? "" : cudaGetErrorString(status);
  for (int i = 0; i < kCount && text.empty(); ++i)
    if (out[i] != in[i ^ 1]) text = "wrong values";
  if (text.empty() && ssmvdm::emulator::counters().atomics) text = "atomic accesses";
  return text.c_str();
}

}  // namespace

// The name of fault `index`, null beyond the last.
extern "C" const char* ssmvdm_fault_name(int index) {
  return index < int(sizeof kFaults / sizeof *kFaults) ? kFaults[index].name : nullptr;
}
// What was noticed; empty: nothing.
extern "C" const char* ssmvdm_run_fault(int index, bool is_wrong) { return verdict(kFaults[index], is_wrong); }

// S4D forward: y_t = 2 Re sum_n weight_n h_t + D u_t with h_t = decay h_{t-1} + u_t, both directions and the gate in
// one kernel. s4d_common.cuh names the two forms.
//
// Direct. A thread computes 16 outputs of one column. In walking order output j of a block is a sum
//
//   over its block, i <= j     k_{j-i} u_i           136 multiply-adds, all in registers
//   over what lies q before    k_{q+j+1} u_{-1-q}    128 for eight q, with 8 loads of u and 8 of taps
//
// since the taps of eight more steps are 8 new ones and 15 that are there already. Blocks are anchored at step 0 for
// both directions; sums go by ascending lag, so that a result does not depend on where its block begins.
//
// Recurrence. A warp walks its columns 16 steps at a time, mode after mode, with the 16 sums in registers and the
// states in shared memory between: 96 multiply-adds for one load of coefficients and one exchange of a state.
#include "cuda/s4d_common.cuh"

namespace ssmvdm::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kTapsAtOnce = 8;  // of one warp

// -- coefficients -----------------------------------------------------------------------------------------------------

// A warp computes 8 taps of a channel, its threads taking modes; decay^l by squaring, which loses what l products lose.
__global__ void __launch_bounds__(kThreads) s4d_taps_kernel(const __grid_constant__ S4dCoefficients p) {
  const int64_t rows = (p.length + kBlock - 1) / kBlock * kBlock, runs = rows / kTapsAtOnce, width = p.columns.width();
  const int64_t jobs = p.directions * p.columns.channels * runs, stride = int64_t(gridDim.x) * kWarps;
  const int thread = int(threadIdx.x) % kWarp;
  for (int64_t job = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp; job < jobs; job += stride) {
    const int64_t first = job % runs * kTapsAtOnce, channel = job / runs % p.columns.channels;
    const int d = int(job / runs / p.columns.channels);
    float sum[kTapsAtOnce] = {};
    for (int64_t n = thread; n < p.modes; n += kWarp) {
      const Complex decay = mode_of(p.decay[d], p.modes, channel, n);
      const Complex weight = mode_of(p.weight[d], p.modes, channel, n);
      Complex power = {weight.re + weight.re, weight.im + weight.im}, square = decay;
      for (int64_t bits = first; bits > 0; bits >>= 1, square = square * square)
        if (bits & 1) power = power * square;
#pragma unroll
      for (int i = 0; i < kTapsAtOnce; ++i) {
        sum[i] += power.re;
        power = power * decay;
      }
    }
#pragma unroll
    for (int i = 0; i < kTapsAtOnce; ++i) {
#pragma unroll
      for (int apart = kWarp / 2; apart > 0; apart /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], apart);
      const int64_t l = first + i;
      if (thread != i) continue;
      const float tap = l == 0 && p.D[d] ? sum[i] + p.D[d][channel] : sum[i];
      const int64_t row = channel / width * rows + l;
      p.packed[d * p.size() + row * width + channel % width] = l < p.length ? tap : 0.f;
    }
  }
}

__global__ void __launch_bounds__(kThreads) s4d_pack_kernel(const __grid_constant__ S4dCoefficients p) {
  const int64_t each = p.columns.channels * p.modes, width = p.columns.width();
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + int(threadIdx.x); i < p.directions * each; i += stride) {
    const int d = int(i / each);
    const int64_t channel = i % each / p.modes, mode = i % p.modes;
    const Complex decay = mode_of(p.decay[d], p.modes, channel, mode);
    const Complex weight = mode_of(p.weight[d], p.modes, channel, mode);
    float4* const to = reinterpret_cast<float4*>(p.packed + d * p.size());
    to[(channel / width * p.modes + mode) * width + channel % width] =
        make_float4(decay.re, decay.im, weight.re + weight.re, weight.im + weight.im);
  }
}

// -- outputs ----------------------------------------------------------------------------------------------------------

template <class T>
__device__ void put_output(const S4dPass& p, int d, const Column& c, int64_t t, const float* sum) {
  if (!p.out[d]) return;
  float y[kChunk], z[kChunk];
  if (p.z) Walk<T>(p.z, c).load(t, p.length, z);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) y[i] = p.z ? sum[i] * p.scale * silu(z[i]) : sum[i] * p.scale;
  Walk<T>(p.out[d], c).store(t, p.length, y);
}

// Takes the sums of direction d at steps t .. t + 7. `total` goes from one direction to the next: the sum of both, or
// where they have outputs of their own and dz is wanted, of dy times each.
template <class T>
__device__ void finish_chunk(const S4dPass& p, int d, const Column& c, int64_t t, const float* sum, float* total) {
  const bool is_last = d + 1 == p.directions;
  const int output = p.concatenate ? d : 0;
  float y[kChunk], factor[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) y[i] = p.concatenate ? sum[i] : total[i] + sum[i];
  if (p.concatenate || is_last) {
    put_output<T>(p, output, c, t, y);
    if (p.dz) {
      Walk<T>(p.dy[output], c).load(t, p.length, factor);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) y[i] = p.concatenate ? fmaf(y[i], factor[i], total[i]) : y[i] * factor[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kChunk; ++i) total[i] = y[i];
  if (!p.dz || !is_last) return;
  Walk<T>(p.z, c).load(t, p.length, factor);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) y[i] *= p.scale * silu_slope(factor[i]);
  Walk<T>(p.dz, c).store(t, p.length, y);
}

template <class T>
__device__ void finish(const S4dPass& p, int d, const Column& c, int64_t t, const float (&sum)[kBlock],
                       float (&total)[kBlock]) {
#pragma unroll
  for (int i = 0; i < kBlock; i += kChunk)
    if (t + i < p.length) finish_chunk<T>(p, d, c, t + i, sum + i, total + i);
}

// -- direct -----------------------------------------------------------------------------------------------------------

template <class T, bool kReverse, int kWidth>
struct Convolution {
  const Reader<T> u;
  const float* taps;  // of this column, kWidth apart
  const int64_t length;

  __device__ float tap(int64_t lag) const { return taps[lag * kWidth]; }
  // Index of walking step i of a block or a chunk.
  __device__ static constexpr int place(int i, int count) { return kReverse ? count - 1 - i : i; }

  __device__ void run(int64_t t, float (&sum)[kBlock]) const {
#pragma unroll
    for (float& s : sum) s = 0.f;
    if (kReverse && t + kBlock > length) return add_steps(t, t, sum);
    add_block(t, sum);
    if (!kReverse) return add_chunks(t, t, sum);
    const int64_t after = length - t - kBlock, chunks = after / kChunk * kChunk;
    add_chunks(t, chunks, sum);
    add_steps(t, t + kBlock + chunks, sum);
  }

 private:
  // Steps of the block at t to its own outputs. What a causal block reads beyond `length` reaches nothing before it.
  __device__ void add_block(int64_t t, float (&sum)[kBlock]) const {
    float x[kBlock];
    u.load(t, length, x);
    u.load(t + kChunk, length, x + kChunk);
#pragma unroll
    for (int lag = 0; lag < kBlock; ++lag) {
      const float k = tap(lag);
#pragma unroll
      for (int j = lag; j < kBlock; ++j) {
        float& s = sum[place(j, kBlock)];
        s = fmaf(x[place(j - lag, kBlock)], k, s);
      }
    }
  }
  // The `count` steps that lie before the block in walking order, a multiple of kChunk.
  __device__ void add_chunks(int64_t t, int64_t count, float (&sum)[kBlock]) const {
    float k[kBlock + kChunk - 1];
#pragma unroll
    for (int m = 0; m < kBlock - 1; ++m) k[m] = count > 0 ? tap(1 + m) : 0.f;
#pragma unroll 2  // or the taps that stay would be moved from register to register
    for (int64_t q = 0; q < count; q += kChunk) {
      float x[kChunk];
      u.load(kReverse ? t + kBlock + q : t - kChunk - q, length, x);
#pragma unroll
      for (int m = 0; m < kChunk; ++m) k[kBlock - 1 + m] = tap(q + kBlock + m);
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
#pragma unroll
        for (int j = 0; j < kBlock; ++j) {
          float& s = sum[place(j, kBlock)];
          s = fmaf(x[kReverse ? i : kChunk - 1 - i], k[i + j], s);
        }
#pragma unroll
      for (int m = 0; m < kBlock - 1; ++m) k[m] = k[m + kChunk];
    }
  }
  // Of the reverse direction the steps from `first` to the end, where they are not a whole chunk or block.
  __device__ void add_steps(int64_t t, int64_t first, float (&sum)[kBlock]) const {
    for (int64_t s = first; s < length; ++s) {
      float x[kChunk];
      u.load(s, s + 1, x);
#pragma unroll
      for (int i = 0; i < kBlock; ++i)
        if (t + i <= s) sum[i] = fmaf(x[0], tap(s - t - i), sum[i]);
    }
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, 3) s4d_direct_kernel(const __grid_constant__ S4dPass p) {
  const int64_t blocks = (p.length + kBlock - 1) / kBlock, rows = blocks * kBlock;
  const int64_t jobs = p.columns.groups * p.columns.units * blocks, stride = int64_t(gridDim.x) * kWarps;
  for (int64_t job = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp; job < jobs; job += stride) {
    const Quotient at = divide(job, blocks);
    const Column c = column_of_job(p.columns, at.whole);
    if (!c.exists) continue;
    const int64_t t = at.rest * kBlock;
    float total[kBlock] = {};
#pragma unroll 1
    for (int d = 0; d < p.directions; ++d) {
      if (!p.wants(d)) continue;
      const float* taps = p.coefficients[d] + c.group * rows * kWidth + int(threadIdx.x) % kWidth;
      float sum[kBlock];
      if (p.reverse[d])
        Convolution<T, true, kWidth>{Reader<T>(p.in[d], c), taps, p.length}.run(t, sum);
      else
        Convolution<T, false, kWidth>{Reader<T>(p.in[d], c), taps, p.length}.run(t, sum);
      finish<T>(p, d, c, t, sum, total);
    }
  }
}

// -- recurrence -------------------------------------------------------------------------------------------------------

// One mode through a block: sum += 2 Re (weight h).
template <bool kReverse>
__device__ inline float2 walk_mode(float4 k, float2 h, const float (&u)[kBlock], float (&sum)[kBlock]) {
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    const int at = kReverse ? kBlock - 1 - i : i;
    const float re = fmaf(-k.y, h.y, fmaf(k.x, h.x, u[at]));
    h.y = fmaf(k.x, h.y, k.y * h.x);
    h.x = re;
    sum[at] = fmaf(-k.w, h.y, fmaf(k.z, h.x, sum[at]));
  }
  return h;
}

template <class T>
__global__ void __launch_bounds__(kWarp) s4d_recurrence_kernel(const __grid_constant__ S4dPass p) {
  SSMVDM_SHARED(float2, states);  // [modes][32]
  const int64_t blocks = (p.length + kBlock - 1) / kBlock, jobs = p.columns.groups * p.columns.units;
  const int64_t width = p.columns.width();
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const Column c = column_of_job(p.columns, job);
    if (!c.exists) continue;
#pragma unroll 1
    for (int d = 0; d < p.directions; ++d) {
      if (!p.wants(d)) continue;
      const Reader<T> in(p.in[d], c);
      const float4* const k =
          reinterpret_cast<const float4*>(p.coefficients[d]) + c.group * p.modes * width + threadIdx.x % width;
      const float D = p.D[d] ? p.D[d][c.channel] : 0.f;
      for (int64_t step = 0; step < blocks; ++step) {
        const int64_t t = (p.reverse[d] ? blocks - 1 - step : step) * kBlock;
        float u[kBlock], sum[kBlock], total[kBlock] = {};
#pragma unroll
        for (int i = 0; i < kBlock; i += kChunk) in.load(t + i, p.length, u + i);
#pragma unroll
        for (int i = 0; i < kBlock; ++i) sum[i] = D * u[i];
        for (int64_t n = 0; n < p.modes; ++n) {
          float2& h = states[n * kWarp + threadIdx.x];
          const float2 before = step == 0 ? make_float2(0.f, 0.f) : h;
          h = p.reverse[d] ? walk_mode<true>(k[n * width], before, u, sum)
                           : walk_mode<false>(k[n * width], before, u, sum);
        }
#pragma unroll
        for (int i = 0; i < kBlock; i += kChunk)
          if (p.unfinished && d > 0) Walk<float>(p.unfinished, c).load(t + i, p.length, total + i);
        finish<T>(p, d, c, t, sum, total);
#pragma unroll
        for (int i = 0; i < kBlock; i += kChunk)
          if (p.unfinished && d == 0 && t + i < p.length)
            Walk<float>(p.unfinished, c).store(t + i, p.length, total + i);
      }
    }
  }
}

}  // namespace

cudaError_t pack_s4d(const S4dCoefficients& c, cudaStream_t stream) {
  const int64_t numbers = c.directions * c.columns.channels * (c.direct ? blocks_of(c.length) * kBlock : c.modes);
  if (numbers == 0) return cudaSuccess;
  return launch(c.direct ? s4d_taps_kernel : s4d_pack_kernel,
                blocks_for(numbers, c.direct ? kWarps * kTapsAtOnce : kThreads), dim3(kThreads), 0, stream, c);
}

cudaError_t run_s4d(const S4dPass& p, DType storage, bool direct, cudaStream_t stream) {
  const int64_t warps = p.columns.groups * p.columns.units;
  if (p.length == 0) return cudaSuccess;
  return with_storage(storage, [&](auto value) {
    using T = decltype(value);
    if (!direct)
      return launch(s4d_recurrence_kernel<T>, blocks_for(warps, 1), dim3(kWarp), std::size_t(p.modes * kModeBytes),
                    stream, p);
    const auto kernel = p.columns.over_lanes ? s4d_direct_kernel<T, 1> : s4d_direct_kernel<T, kWarp>;
    return launch(kernel, blocks_for(warps * blocks_of(p.length), kWarps), dim3(kThreads), 0, stream, p);
  });
}

namespace {

// float32 numbers of a sequence tensor that the recurrence leaves between its directions.
int64_t unfinished_size(const S4dArgs& args, bool direct) {
  const bool is_carried = !direct && args.directions == 2 && !args.concatenate;
  return is_carried ? args.batch * args.lanes * args.channels * args.length : 0;
}

}  // namespace

int64_t s4d_forward_workspace(const S4dArgs& args, const Device& device) {
  const bool direct = is_direct(args, device);
  const Columns columns = columns_of(args.batch, args.channels, args.lanes, args.dir[0].u);
  const int64_t packed = args.directions * coefficients_of(args, columns, direct, nullptr).size();
  return (packed + unfinished_size(args, direct)) * int64_t(sizeof(float));
}

const char* s4d_forward(const S4dArgs& args, const Launch& on) {
  const bool direct = is_direct(args, on.device);
  const Columns columns = columns_of(args.batch, args.channels, args.lanes, args.dir[0].u);
  const S4dCoefficients c = coefficients_of(args, columns, direct, on.workspace);
  S4dPass p = pass_of(args, c);
  for (int d = 0; d < args.directions; ++d) p.in[d] = {track(args.dir[d].u), false}, p.out[d] = track(args.y[d]);
  if (args.z.data) p.z = track(args.z);
  if (unfinished_size(args, direct))
    p.unfinished = float_track(c.packed + c.directions * c.size(), columns, args.length);
  const cudaStream_t stream = static_cast<cudaStream_t>(on.stream);
  cudaError_t status = pack_s4d(c, stream);
  if (status == cudaSuccess) status = run_s4d(p, args.dir[0].u.dtype, direct, stream);
  return sentence(status);
}

}  // namespace ssmvdm::cuda

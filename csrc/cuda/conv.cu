// Depthwise convolution in time, both directions over one read of x:
//
//   y_t = act(bias + sum_j tap_j x_{t-j})       anti-causal: x_{t+j}       tap_j = weight_{width-1-j}
//
// A thread walks one column (columns.cuh) in chunks of 8 steps. It holds the chunk, the one after it, which is on its
// way from memory meanwhile, and the 3 steps before; filters of up to 4 taps need no more, and every element is read
// once. Longer filters read their neighbourhood again for every output.
//
// The backward pass computes the pre-activation again. g_t = dy_t act'(.) is scattered to the gradients of the
// 8 + 8 + 3 steps around it, and a chunk is stored when the next one is done, so that all of its terms are there:
//
//   dx_t = sum_j tap_j g_{t+j} + sum_j tap'_j g'_{t-j}       dtap_j = sum_t g_t x_{t-j}       dbias = sum_t g_t
//
// A warp goes through several units with its sums in registers, a block leaves one partial sum, and a second kernel
// adds those in order.
//
// Per element, with both directions, 4 taps and silu: forward one read and two writes, 34 instructions of sm_90, 4 of
// them special functions; backward three reads and one write, 65 instructions.
#include "cuda/columns.cuh"
#include "cuda/launch.h"
#include "cuda/partial_sums.cuh"

namespace ssmvdm::cuda {
namespace {

constexpr int kTaps = 4, kReach = kTaps - 1;
constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kSums = kTaps + 1;              // of one direction: the taps' and the bias's
constexpr int64_t kWarpsAtWork = 16384;       // of the backward pass, about
constexpr int kWindow = kReach + 2 * kChunk;  // before, now, next

struct Conv {
  Columns columns;
  int64_t length, width;
  int32_t first, last;  // directions
  bool has_silu;
  Track x, y[kMaxDirections];           // y: dy in the backward pass
  const float* weight[kMaxDirections];  // (channels, width)
  const float* bias[kMaxDirections];    // (channels,) or null

  __device__ bool has(int d) const { return d >= first && d <= last; }
};

struct ConvBackward : Conv {
  Track dx, g[kMaxDirections];  // g: scratch memory, for filters that are long
  int64_t parts;                // blocks of a group
  float* sums;                  // (parts, 2, width + 1, channels)
};

// One direction's filter of one channel, up to kTaps.
struct Filter {
  float tap[kTaps], bias;

  __device__ Filter(const Conv& p, int d, int64_t channel) {
#pragma unroll
    for (int j = 0; j < kTaps; ++j) tap[j] = j < p.width ? p.weight[d][channel * p.width + p.width - 1 - j] : 0.f;
    bias = p.bias[d] ? p.bias[d][channel] : 0.f;
  }
};

// A chunk before activation. Each tap reads `step` after the one before it: -1, in the anti-causal direction 1.
__device__ inline void filtered(const Filter& f, int64_t width, const float (&window)[kWindow], int step,
                                float (&out)[kChunk]) {
#pragma unroll
  for (int i = 0; i < kChunk; ++i) out[i] = f.bias;
#pragma unroll
  for (int j = kReach; j >= 0; --j) {
    if (j >= width) continue;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) out[i] = fmaf(f.tap[j], window[kReach + i + j * step], out[i]);
  }
}

// x of steps t - 3 .. t + 15 while a column is walked.
template <class T>
struct Window {
  Walk<T> x;
  int64_t length;
  float at[kWindow];

  __device__ Window(const Track& track, const Column& c, int64_t length_) : x(track, c), length(length_) {
#pragma unroll
    for (int i = 0; i < kReach; ++i) at[i] = 0.f;
    load(0, kReach);
  }
  __device__ void load_next(int64_t t) { load(t + kChunk, kReach + kChunk); }
  __device__ void advance() {
#pragma unroll
    for (int i = 0; i < kReach + kChunk; ++i) at[i] = at[i + kChunk];
  }

 private:
  __device__ void load(int64_t t, int place) {
    float chunk[kChunk];
    x.load(t, length, chunk);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) at[place + i] = chunk[i];
  }
};

// Where the tap after a tap reads x.
__device__ constexpr int step_of(int d) { return d == 0 ? -1 : 1; }

// -- forward ----------------------------------------------------------------------------------------------------------

template <class T>
__device__ void convolve(const Conv& p, const Column& c) {
  const Filter filter[] = {Filter(p, p.first, c.channel), Filter(p, p.last, c.channel)};
  const Walk<T> y[] = {Walk<T>(p.y[p.first], c), Walk<T>(p.y[p.last], c)};
  Window<T> window(p.x, c, p.length);
  for (int64_t t = 0; t < p.length; t += kChunk) {
    window.load_next(t);
#pragma unroll
    for (int d = 0; d < kMaxDirections; ++d) {
      if (!p.has(d)) continue;
      float out[kChunk];
      filtered(filter[d], p.width, window.at, step_of(d), out);
      if (p.has_silu) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) out[i] = silu(out[i]);
      }
      y[d].store(t, p.length, out);
    }
    window.advance();
  }
}

// A filter of any length, at one step.
template <class T>
__device__ float filtered_long(const Conv& p, int d, const Column& c, const Walk<T>& x, int64_t t) {
  float sum = p.bias[d] ? p.bias[d][c.channel] : 0.f;
  const int64_t last = p.width - 1;
  for (int64_t j = last; j >= 0; --j) {
    const int64_t s = t + step_of(d) * j;
    if (s >= 0 && s < p.length) sum = fmaf(p.weight[d][c.channel * p.width + last - j], x.at(s), sum);
  }
  return sum;
}

template <class T>
__device__ void convolve_long(const Conv& p, const Column& c) {
  const Walk<T> x(p.x, c);
  for (int d = p.first; d <= p.last; ++d) {
    const Walk<T> y(p.y[d], c);
    for (int64_t t = 0; t < p.length; ++t) {
      const float v = filtered_long(p, d, c, x, t);
      y.put(t, p.has_silu ? silu(v) : v);
    }
  }
}

template <class T, bool kIsLong>
__global__ void __launch_bounds__(kThreads) conv_forward_kernel(const __grid_constant__ Conv p) {
  const int64_t jobs = p.columns.groups * p.columns.units, stride = int64_t(gridDim.x) * kWarps;
  for (int64_t job = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp; job < jobs; job += stride) {
    const Column c = column_of_job(p.columns, job);
    if (!c.exists) continue;
    if constexpr (kIsLong)
      convolve_long<T>(p, c);
    else
      convolve<T>(p, c);
  }
}

// -- backward ---------------------------------------------------------------------------------------------------------

struct Sums {
  float of[kMaxDirections][kSums];  // taps from the first of the round on, then the bias
};

template <class T>
__device__ void convolve_back(const ConvBackward& p, const Column& c, Sums& sums) {
  const Filter filter[] = {Filter(p, p.first, c.channel), Filter(p, p.last, c.channel)};
  const Walk<T> dy[] = {Walk<T>(p.y[p.first], c), Walk<T>(p.y[p.last], c)};
  Window<T> window(p.x, c, p.length);
  const Walk<T> dx_out(p.dx ? p.dx : p.x, c);
  float dx[kChunk + kChunk + kReach];  // of steps t - 8 .. t + 10
#pragma unroll
  for (float& x : dx) x = 0.f;
  const auto store_first = [&](int64_t t) {
    float chunk[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) chunk[i] = dx[i];
    if (p.dx && t >= 0) dx_out.store(t, p.length, chunk);
#pragma unroll
    for (int i = 0; i < kChunk + kReach; ++i) dx[i] = dx[i + kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) dx[kChunk + kReach + i] = 0.f;
  };
  int64_t t = 0;
  for (; t < p.length; t += kChunk) {
    window.load_next(t);
#pragma unroll
    for (int d = 0; d < kMaxDirections; ++d) {
      if (!p.has(d)) continue;
      float g[kChunk];
      dy[d].load(t, p.length, g);
      if (p.has_silu) {
        float before[kChunk];
        filtered(filter[d], p.width, window.at, step_of(d), before);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) g[i] *= silu_slope(before[i]);
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sums.of[d][kTaps] += g[i];
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (j >= p.width) continue;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          const int at = i + j * step_of(d);
          sums.of[d][j] = fmaf(g[i], window.at[kReach + at], sums.of[d][j]);
          dx[kChunk + at] = fmaf(filter[d].tap[j], g[i], dx[kChunk + at]);
        }
      }
    }
    store_first(t - kChunk);
    window.advance();
  }
  store_first(t - kChunk);
}

// A long filter takes rounds of kTaps taps. The first leaves g in scratch memory and computes dx.
template <class T>
__device__ void convolve_back_long(const ConvBackward& p, const Column& c, int64_t first_tap, Sums& sums) {
  const Walk<T> x(p.x, c);
  const auto adjoint = [&](int d, int64_t t) {
    const Walk<float> g(p.g[d], c);
    float sum = 0.f;
    for (int64_t j = 0; j < p.width; ++j) {
      const int64_t s = t - step_of(d) * j;
      if (s >= 0 && s < p.length) sum = fmaf(p.weight[d][c.channel * p.width + p.width - 1 - j], g.at(s), sum);
    }
    return sum;
  };
#pragma unroll
  for (int d = 0; d < kMaxDirections; ++d) {
    if (!p.has(d)) continue;
    const Walk<T> dy(p.y[d], c);
    const Walk<float> g(p.g[d], c);
    for (int64_t t = 0; t < p.length; ++t) {
      if (first_tap == 0) {
        const float slope = p.has_silu ? silu_slope(filtered_long(p, d, c, x, t)) : 1.f;
        g.put(t, dy.at(t) * slope);
        sums.of[d][kTaps] += g.at(t);
      }
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int64_t s = t + step_of(d) * (first_tap + j);
        if (first_tap + j < p.width && s >= 0 && s < p.length) sums.of[d][j] = fmaf(g.at(t), x.at(s), sums.of[d][j]);
      }
    }
  }
  if (first_tap > 0 || !p.dx) return;
  const Walk<T> dx(p.dx, c);
  for (int64_t t = 0; t < p.length; ++t) {
    float sum = 0.f;
    for (int d = p.first; d <= p.last; ++d) sum += adjoint(d, t);
    dx.put(t, sum);
  }
}

// The sums of a block's threads for each of its channels to the block's partial sums.
__device__ inline void leave_sums(const ConvBackward& p, int64_t group, int64_t part, int64_t first_tap,
                                  const Sums& sums) {
  constexpr int kRows = kMaxDirections * kSums, kPitch = kThreads + 1;
  __shared__ float rows[kRows][kPitch];
#pragma unroll
  for (int row = 0; row < kRows; ++row) rows[row][threadIdx.x] = sums.of[row / kSums][row % kSums];
  __syncthreads();
  const int width = int(p.columns.width());
  for (int i = int(threadIdx.x); i < kRows * width; i += kThreads) {
    const int row = i / width, d = row / kSums, j = row % kSums;
    const int64_t channel = group * width + i % width, tap = j == kTaps ? p.width : first_tap + j;
    const bool is_wanted = j == kTaps ? first_tap == 0 : tap < p.width;
    if (!p.has(d) || !is_wanted || channel >= p.columns.channels) continue;
    float sum = 0.f;
    for (int thread = i % width; thread < kThreads; thread += width) sum += rows[row][thread];
    p.sums[((part * kMaxDirections + d) * (p.width + 1) + tap) * p.columns.channels + channel] = sum;
  }
  __syncthreads();
}

template <class T, bool kIsLong>
__global__ void __launch_bounds__(kThreads, 5) conv_backward_kernel(const __grid_constant__ ConvBackward p) {
  const int64_t group = blockIdx.x / p.parts, part = blockIdx.x % p.parts;
  const int64_t first_unit = part * kWarps + int(threadIdx.x) / kWarp, stride = p.parts * kWarps;
  for (int64_t first_tap = 0; first_tap == 0 || first_tap < p.width; first_tap += kTaps) {
    Sums sums{};
    for (int64_t unit = first_unit; unit < p.columns.units; unit += stride) {
      const Column c = column_of(p.columns, group, unit);
      if (!c.exists) continue;
      if constexpr (kIsLong)
        convolve_back_long<T>(p, c, first_tap, sums);
      else
        convolve_back<T>(p, c, sums);
    }
    leave_sums(p, group, part, first_tap, sums);
  }
}

struct ConvSums {
  int64_t parts, channels, width;
  int32_t first, last;
  const float* sums;
  float *dweight[kMaxDirections], *dbias[kMaxDirections];
};

// Where both directions have one filter, that of the first has the sums of both.
__global__ void __launch_bounds__(32 * kSlices) conv_sums_kernel(const __grid_constant__ ConvSums p) {
  const int64_t rows = p.width + 1, each = rows * p.channels;
  const auto target = [&](int d, int64_t row) { return row == p.width ? p.dbias[d] : p.dweight[d]; };
  const auto value = [&](int64_t index, int64_t part) {
    const int64_t d = p.first + index / each, row = index % each / p.channels;
    const float* own = p.sums + (part * kMaxDirections + d) * each + index % each;
    const bool both = d == p.first && p.first < p.last && target(p.first, row) == target(p.last, row);
    return both ? own[0] + own[each] : own[0];
  };
  const auto put = [&](int64_t index, float sum) {
    const int64_t row = index % each / p.channels, channel = index % p.channels;
    const int d = p.first + int(index / each);
    float* const out = target(d, row);
    if (!out || (d > p.first && out == target(p.first, row))) return;
    if (row == p.width)
      out[channel] = sum;
    else
      out[channel * p.width + p.width - 1 - row] = sum;
  };
  sum_parts((p.last - p.first + 1) * each, p.parts, value, put);
}

// -- launchers --------------------------------------------------------------------------------------------------------

Conv conv_params(const ConvArgs& args) {
  Conv p{};
  p.columns = columns_of(args.batch, args.channels, args.lanes, args.x);
  p.length = args.length, p.width = args.width;
  p.first = args.first_direction, p.last = args.last_direction, p.has_silu = args.silu;
  p.x = track(args.x);
  for (int d = p.first; d <= p.last; ++d) {
    p.y[d] = track(args.y[d]);
    p.weight[d] = static_cast<const float*>(args.weight[d]), p.bias[d] = static_cast<const float*>(args.bias[d]);
  }
  return p;
}

// Blocks of a group: about kWarpsAtWork warps in all, each with the same number of units.
int64_t parts_of(const Columns& c) {
  const int64_t each = (c.groups * c.units + kWarpsAtWork - 1) / kWarpsAtWork;
  return (c.units + kWarps * each - 1) / (kWarps * each);
}

struct Workspace {
  int64_t sums, g;  // floats
  Workspace(const ConvBackwardArgs& a, const Columns& c) {
    sums = parts_of(c) * kMaxDirections * (a.width + 1) * a.channels;
    g = a.width > kTaps ? a.batch * a.lanes * a.channels * a.length : 0;
  }
  int64_t bytes() const { return (sums + kMaxDirections * g) * int64_t(sizeof(float)); }
};

}  // namespace

const char* conv_forward(const ConvArgs& args, const Launch& on) {
  const Conv p = conv_params(args);
  const dim3 grid = blocks_for(p.columns.groups * p.columns.units, kWarps);
  return with_storage(args.x.dtype, [&](auto storage) {
    using T = decltype(storage);
    const auto kernel = args.width > kTaps ? conv_forward_kernel<T, true> : conv_forward_kernel<T, false>;
    return sentence(launch(kernel, grid, dim3(kThreads), 0, static_cast<cudaStream_t>(on.stream), p));
  });
}

int64_t conv_backward_workspace(const ConvBackwardArgs& args, const Device&) {
  return Workspace(args, columns_of(args.batch, args.channels, args.lanes, args.x)).bytes();
}

const char* conv_backward(const ConvBackwardArgs& args, const Launch& on) {
  ConvBackward p{conv_params(args)};
  const Workspace workspace(args, p.columns);
  p.sums = static_cast<float*>(on.workspace);
  p.parts = parts_of(p.columns);
  if (args.dx.data) p.dx = track(args.dx);
  if (workspace.g)
    for (int d = 0; d < kMaxDirections; ++d)
      p.g[d] = float_track(p.sums + workspace.sums + d * workspace.g, p.columns, args.length);
  const cudaStream_t stream = static_cast<cudaStream_t>(on.stream);
  const cudaError_t status = with_storage(args.x.dtype, [&](auto storage) {
    using T = decltype(storage);
    const auto kernel = args.width > kTaps ? conv_backward_kernel<T, true> : conv_backward_kernel<T, false>;
    return launch(kernel, dim3(unsigned(p.columns.groups * p.parts)), dim3(kThreads), 0, stream, p);
  });
  if (status != cudaSuccess) return sentence(status);
  ConvSums q{p.parts, args.channels, args.width, p.first, p.last, p.sums, {}, {}};
  for (int d = p.first; d <= p.last; ++d)
    q.dweight[d] = static_cast<float*>(args.dweight[d]), q.dbias[d] = static_cast<float*>(args.dbias[d]);
  const int64_t count = (p.last - p.first + 1) * (args.width + 1) * args.channels;
  return sentence(launch(conv_sums_kernel, blocks_for(count, 32), dim3(32 * kSlices), 0, stream, q));
}

}  // namespace ssmvdm::cuda

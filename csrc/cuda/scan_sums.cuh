// Parameters of the backward scan, and its sums over channels and over sequences. No atomics: every sum has an order.
#pragma once

#include "cuda/partial_sums.cuh"
#include "cuda/scan_launch.cuh"

namespace ssmvdm::cuda {

constexpr int kSegment = 256;    // steps between the states that are kept of a long sequence
constexpr int kChunkFloats = kStates + 3 * kChunk;  // kept of a chunk: h before it, and delta, its slope and u
constexpr int kStateSums = 2 * kStates;  // dB and dC of one step

struct GradDirectionParams {
  Strided du, ddelta, dz, forward_y;  // in walking order; data null where not wanted
};

// Quantities that may wait to be completed: by the other direction if they meet in it, by other states if there are
// more. Of y and dz no call with a single turn of states keeps both waiting.
enum Quantity { kOfY, kOfDu, kOfDdelta, kOfDz, kQuantities };

struct BackwardParams : ScanParams {  // y of the directions holds dy
  GradDirectionParams grad[kMaxDirections];
  bool meets_in[kQuantities];
  bool wants_outputs;  // dz, or y of the forward scan
  bool wants_states;   // dB or dC that change with time
  const float* dlast_state;
  float* dinitial_state;
  // Memory of a block: what is kept of every chunk of a segment; h at every segment, if there are several; and what
  // waits. Null where it lies in shared memory.
  float *chunk_states, *segment_states, *exchange;
  int64_t chunk_floats, segment_floats;
  int32_t exchange_row;  // floats of one time step in `exchange`
  // dB and dC summed over the channels of a slice: (turns, slices, directions, units, length, kStateSums * kUnit)
  float* state_sums;
  // Sums over the sequences of a block: (unit_step, directions, rows, channels). Rows: dA, dD, d delta_bias, then dB
  // and dC that are constant in time.
  float* parameter_sums;
  int32_t rows;

  int32_t turns() const { return states > kStates ? (states + kStates - 1) / kStates : 1; }
};

// Where quantities wait: columns of a row of `exchange`. The second direction has columns of its own for what waits not
// for the first, but for further turns.
template <class Map, bool kPlain>
struct Exchange {
  static constexpr int kColumn = Map::kThreads / 2;
  static constexpr int kRow = (kPlain ? 3 : kQuantities) * kColumn;  // of one direction
  __device__ static int row(const BackwardParams& p) { return kPlain ? kRow : p.exchange_row; }
  __device__ static int column(Quantity quantity, bool meets, int direction) {
    return (kPlain ? quantity % 3 : quantity + (meets ? 0 : direction * kQuantities)) * kColumn;
  }
};

// -- sums over the lanes of a warp -----------------------------------------------------------------------------------

__device__ inline float from_lane(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += from_lane(x, mask);
  return x;
}

// Halves the work of a sum over lanes: of the two values the lane keeps one, by its bit `mask`, and adds the other
// lane's.
__device__ inline float keep_one(float first, float second, int mask) {
  const bool has_bit = threadIdx.x & mask;
  return (has_bit ? second : first) + from_lane(has_bit ? first : second, mask);
}

// Sums of factor * v over the 32 channels of a warp but for the last step: lane l gets that of state l / 2 over half of
// them, to which the neighbouring lane has the other half. States come in the order of ChannelThreads, so that of
// what two lanes exchange each has its own in front.
__device__ inline float sum_channels(float factor, const float (&v)[kStates]) {
  float sum[kStates / 2];
#pragma unroll
  for (int i = 0; i < kStates / 2; ++i) sum[i] = fmaf(factor, v[i], from_lane(factor * v[i + kStates / 2], 16));
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += from_lane(sum[i + 4], 8);
#pragma unroll
  for (int i = 0; i < 2; ++i) sum[i] += from_lane(sum[i + 2], 4);
  return sum[0] + from_lane(sum[1], 2);
}

// Sums of 16 values over all lanes but for the last step.
__device__ inline float sum_half(const float (&v)[kStates]) {
  float sum[kStates / 2];
#pragma unroll
  for (int i = 0; i < kStates / 2; ++i) sum[i] = keep_one(v[i], v[i + kStates / 2], 16);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = keep_one(sum[i], sum[i + 4], 8);
#pragma unroll
  for (int i = 0; i < 2; ++i) sum[i] = keep_one(sum[i], sum[i + 2], 4);
  return keep_one(sum[0], sum[1], 2);
}
// Sums of 16 values over all lanes: lane l gets that of value l / 2.
__device__ inline float sum_lanes(const float (&v)[kStates]) {
  const float half = sum_half(v);
  return half + from_lane(half, 1);
}

// -- dB and dC: sums over the channels of a slice --------------------------------------------------------------------

// Where the sums of a step begin.
template <class Map>
__device__ inline float* state_sums_of(const BackwardParams& p, int turn_index, int slice, int direction, int64_t unit,
                                       int64_t step) {
  const int64_t part = (int64_t(turn_index) * p.slices + slice) * p.directions + direction;
  return p.state_sums + ((part * p.units + unit) * p.length + step) * (kStateSums * Map::kUnit);
}

// Channels of a sequence: over the warp by shuffles; over the warps once per tile, from shared memory.
template <class Map>
struct ChannelSums {
  static constexpr int kStep = kStateSums;
  static constexpr int kWarpFloats = Map::kTileSteps * kStateSums;
  __host__ __device__ static int floats(int threads) { return threads / 32 * kWarpFloats; }
  float* memory;  // [warp of the block][step of the tile][state][dB, dC]
  float* own;     // the lane's value of its warp

  __device__ void place(float* memory_, const Place<Map>&) {
    memory = memory_;
    own = memory + int(threadIdx.x) / 32 * kWarpFloats + threadIdx.x % 32;
  }
  // One step's dC = g h and dB = du dh.
  __device__ void add(const Place<Map>&, float g, const float (&h)[kStates], float du, const float (&dh)[kStates],
                      int step_in_tile, float*) {
    own[step_in_tile * kStateSums] = keep_one(sum(du, dh), sum(g, h), 1);
  }
  __device__ static float sum(float factor, const float (&v)[kStates]) {
    if constexpr (Map::kFours > 1) return sum_channels(factor, v);
    float products[kStates];
#pragma unroll
    for (int n = 0; n < kStates; ++n) products[n] = factor * v[n];
    return sum_half(products);
  }
  // The steps [begin, end) of the last tile, by the whole block, after a barrier.
  __device__ void finish_tile(const BackwardParams& p, const Place<Map>& at, int64_t unit, int turn_index, int begin,
                              int end) {
    const int steps = end - begin, warps = at.threads / 32;
    for (int i = threadIdx.x; i < p.directions * steps * kStateSums; i += blockDim.x) {
      const int d = i / (steps * kStateSums), step = i / kStateSums % steps, value = i % kStateSums;
      const float* v = memory + d * warps * kWarpFloats + step * kStateSums + value;
      float sum = v[0];
      for (int w = 1; w < warps; ++w) sum += v[w * kWarpFloats];
      // dB, then dC: whoever adds up the one does not read the other.
      const int place = value % 2 * kStates + value / 2;
      state_sums_of<Map>(p, turn_index, at.slice, d, unit, begin + step)[place] = sum;
    }
  }
};

// Lanes of a video: a thread has the values of its own sequence, so only the warps of its direction, which have other
// channels, are summed. Each leaves dh and h with what they are to be multiplied with, takes four states of the sums,
// and adds what former laps have left.
template <class Map>
struct LaneSums {
  static constexpr int kStep = kStateSums * 32;
  static constexpr int kWarps = kStates / 4;
  static_assert(kWarps * 32 == Map::kThreads / 2);
  // Floats of a thread: dh, h, and behind them delta u and g, with a gap that spreads threads over the banks.
  static constexpr int kRow = kStateSums + 4, kWarpFloats = 32 * kRow;
  __host__ __device__ static int floats(int threads) { return threads / 32 * kWarpFloats; }
  float *column, *own;  // of the direction, [warp][lane][kRow]; of the warp
  int warp;

  __device__ void place(float* memory, const Place<Map>& at) {
    warp = at.index / 32;
    column = memory + at.direction * kWarps * kWarpFloats + int(threadIdx.x) % 32 * kRow;
    own = column + warp * kWarpFloats;
  }
  // One step's dC = g h and dB = du dh; out: where the sums of the step begin.
  __device__ void add(const Place<Map>& at, float g, const float (&h)[kStates], float du, const float (&dh)[kStates],
                      int, float* out) {
    const auto leave = [&](int first, const float (&v)[kStates]) {
#pragma unroll
      for (int n = 0; n < kStates; n += 4)
        *reinterpret_cast<float4*>(own + first + n) = make_float4(v[n], v[n + 1], v[n + 2], v[n + 3]);
    };
    barrier_of(1 + at.direction, kWarps * 32);  // all have read what the step before has left
    leave(0, dh);
    leave(kStates, h);
    *reinterpret_cast<float2*>(own + kStateSums) = make_float2(du, g);
    barrier_of(1 + at.direction, kWarps * 32);
    float4* const to = reinterpret_cast<float4*>(out) + warp * 32 + int(threadIdx.x) % 32;
    float4 dB = make_float4(0.f, 0.f, 0.f, 0.f), dC = dB;
    if (at.lap > 0) dB = to[0], dC = to[kStates / 4 * 32];
    const auto add = [](float4& sum, float factor, const float4& v) {
      sum.x = fmaf(factor, v.x, sum.x), sum.y = fmaf(factor, v.y, sum.y);
      sum.z = fmaf(factor, v.z, sum.z), sum.w = fmaf(factor, v.w, sum.w);
    };
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* const from = column + w * kWarpFloats;
      const float2 factors = *reinterpret_cast<const float2*>(from + kStateSums);
      add(dB, factors.x, *reinterpret_cast<const float4*>(from + 4 * warp));
      add(dC, factors.y, *reinterpret_cast<const float4*>(from + kStates + 4 * warp));
    }
    to[0] = dB, to[kStates / 4 * 32] = dC;
  }
  __device__ void finish_tile(const BackwardParams&, const Place<Map>&, int64_t, int, int, int) {}
};

template <bool kBackward, int kOrders>
__host__ __device__ ChannelSums<ChannelThreads<kBackward, kOrders>> sums_for(ChannelThreads<kBackward, kOrders>);
template <int K>
__host__ __device__ LaneSums<LaneThreads<K>> sums_for(LaneThreads<K>);

// -- what is left when all blocks are done ---------------------------------------------------------------------------

// The gradient of one B or C: sums over slices, and over both directions where they share it.
struct StateGradient {
  Strided out;  // (batch, groups, states, length, lanes), natural time order
  int32_t which, first_direction, last_direction, sharing;
};

template <class T, class Map>
__global__ void __launch_bounds__(256) finish_states_kernel(const BackwardParams p, const StateGradient job) {
  const int64_t groups = p.slices / p.group_slices / job.sharing, padded = p.units * Map::kUnit;
  const int64_t count = groups * padded * p.length * p.states;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    // Neighbouring threads read neighbouring sums.
    const int64_t lane = i % Map::kUnit;
    const Quotient by_state = divide(i / Map::kUnit, p.states), by_time = divide(by_state.whole, p.length);
    const Quotient by_unit = divide(by_time.whole, p.units);
    const int64_t state = by_state.rest, t = by_time.rest, unit = by_unit.rest, group = by_unit.whole;
    const int64_t q = unit * Map::kUnit + lane;
    if (q >= p.sequences) continue;
    const int n = int(state % kStates);
    const int value = Map::kUnit == 1 ? job.which * kStates + n
                                      : ((job.which * kStates + n) / 4 * 32 + int(lane)) * 4 + n % 4;
    const int slices = job.sharing * p.group_slices;
    float sum = 0.f;
    for (int d = job.first_direction; d <= job.last_direction; ++d)
      for (int slice = int(group) * slices; slice < (int(group) + 1) * slices; ++slice)
        sum += state_sums_of<Map>(p, int(state / kStates), slice, d, unit,
                                  p.dir[d].reverse ? p.length - 1 - t : t)[value];
    const Quotient at = divide(q, p.lanes);
    const int64_t offset = at.whole * job.out.batch + at.rest * job.out.lane + group * job.out.group;
    *element<T>(job.out, offset + state * job.out.row + t * job.out.time) = from_float<T>(sum);
  }
}

// The gradient of one parameter, (channels, width): sums over blocks, and over both directions where they share it.
struct ParameterGradient {
  float* out;
  int32_t first_row, width, first_direction, last_direction;
};
constexpr int kMaxParameterGradients = 10;
struct ParameterGradients {
  ParameterGradient job[kMaxParameterGradients];
  int32_t count;
};

// Each of them in a row of blocks of its own. What 528 blocks have left is added up by eight threads side by side: one
// alone would wait for memory hundreds of times.
template <class Map>
__global__ void __launch_bounds__(32 * kSlices) finish_parameters_kernel(const BackwardParams p,
                                                                         const ParameterGradients jobs) {
  const ParameterGradient& job = jobs.job[blockIdx.y];
  const int64_t channels = p.channels, direction = p.rows * channels;
  const bool both = job.last_direction > job.first_direction;
  const auto value = [&](int64_t i, int64_t part) {
    const float* const own =
        p.parameter_sums + (part * p.directions + job.first_direction) * direction + job.first_row * channels + i;
    return both ? own[0] + own[direction] : own[0];
  };
  const auto put = [&](int64_t i, float sum) {
    const Quotient at = divide(i, channels);
    job.out[at.rest * job.width + at.whole] = sum;
  };
  sum_parts(channels * job.width, p.unit_step, value, put);
}

}  // namespace ssmvdm::cuda

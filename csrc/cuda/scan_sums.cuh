// Parameters of the backward scan, and its sums over channels and over sequences. No atomics: every sum has an order.
#pragma once

#include "cuda/scan_launch.cuh"

namespace ssmvdm::cuda {

constexpr int kSegment = 256;    // steps between the states that are kept of a long sequence
constexpr int kStateSums = 2 * kStates;  // dB and dC of one step

struct GradDirectionParams {
  Strided du, ddelta, dz, forward_y;  // in walking order; data null where not wanted
};

// Where a quantity waits to be completed: by the other direction if they meet in it, by other states if there are more.
struct Waiting {
  int64_t offset;  // in `exchange`
  bool meets;
};

struct BackwardParams : ScanParams {  // y of the directions holds dy
  GradDirectionParams grad[kMaxDirections];
  Waiting y, dz, du, ddelta;
  bool wants_outputs;  // dz, or y of the forward scan
  bool wants_states;   // dB or dC that change with time
  const float* dlast_state;
  float* dinitial_state;
  // Memory of a block: h at every chunk of a segment; h at every segment, if there are several; and what waits. Null
  // where it lies in shared memory.
  float *chunk_states, *segment_states, *exchange;
  int64_t chunk_floats, segment_floats;
  // dB and dC summed over the channels of a slice: (turns, slices, directions, units, length, kStateSums, kUnit)
  float* state_sums;
  // Sums over the sequences of a block: (unit_step, directions, rows, channels). Rows: dA, dD, d delta_bias, then dB and
  // dC that are constant in time.
  float* parameter_sums;
  int32_t rows;

  int32_t turns() const { return states > kStates ? (states + kStates - 1) / kStates : 1; }
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

// Sums of four neighbouring values over the lanes; those of lane l end up complete up to the bits 1 and 2, for value
// l / 2 % 4.
__device__ inline float sum_four(const float* v) {
  const float a = keep_one(v[0], v[2], 4), b = keep_one(v[1], v[3], 4);
  return keep_one(a, b, 2);
}

// Sums of factor * v over the 32 channels of a warp but for the last step: lane l gets that of state l / 2 over half of
// them, to which the neighbouring lane has the other half. Quarters of the states come in the order of
// ChannelThreads<true>, so that of what two lanes exchange each already has its own in front.
__device__ inline float sum_channels(float factor, const float (&v)[kStates]) {
  float half[8], quarter[4];
#pragma unroll
  for (int i = 0; i < 8; ++i) half[i] = fmaf(factor, v[i], from_lane(factor * v[i + 8], 16));
#pragma unroll
  for (int i = 0; i < 4; ++i) quarter[i] = half[i] + from_lane(half[i + 4], 8);
  return sum_four(quarter);
}

// Sums of 16 values over all lanes: lane l gets that of value l / 2.
__device__ inline float sum_lanes(const float (&v)[kStates]) {
  float half[8], quarter[4];
#pragma unroll
  for (int i = 0; i < 8; ++i) half[i] = keep_one(v[i], v[i + 8], 16);
#pragma unroll
  for (int i = 0; i < 4; ++i) quarter[i] = keep_one(half[i], half[i + 4], 8);
  const float x = sum_four(quarter);
  return x + from_lane(x, 1);
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
  static constexpr int kWarps = Map::kThreads / 2 / 32;
  static constexpr int kFloats = 2 * Map::kTileSteps * kWarps * kStateSums;
  float* memory;  // [direction][step of the tile][warp][state][dB, dC]
  float* own;     // the lane's value of its warp

  __device__ void place(float* memory_, const Place<Map>& at) {
    memory = memory_;
    own = memory + (at.direction * Map::kTileSteps * kWarps + at.index / 32) * kStateSums + threadIdx.x % 32;
  }
  // One step's dC = factor * values: what the lane has to keep of it until the step's dB.
  __device__ float add_dC(const Place<Map>&, float factor, const float (&values)[kStates], float*) {
    return sum_channels(factor, values);
  }
  __device__ void add_dB(const Place<Map>&, float factor, const float (&values)[kStates], float dC, int step_in_tile,
                         float*) {
    own[step_in_tile * kWarps * kStateSums] = keep_one(sum_channels(factor, values), dC, 1);
  }
  // The steps [begin, end) of the last tile, by the whole block, after a barrier.
  __device__ void finish_tile(const BackwardParams& p, const Place<Map>& at, int64_t unit, int turn_index, int begin,
                              int end) {
    const int steps = end - begin, warps = at.threads / 32;
    for (int i = threadIdx.x; i < p.directions * steps * kStateSums; i += blockDim.x) {
      const int d = i / (steps * kStateSums), step = i / kStateSums % steps, value = i % kStateSums;
      const float* v = memory + (d * Map::kTileSteps + step) * kWarps * kStateSums + value;
      float sum = v[0];
      for (int w = 1; w < warps; ++w) sum += v[w * kStateSums];
      state_sums_of<Map>(p, turn_index, at.slice, d, unit, begin + step)[value] = sum;
    }
  }
};

// Lanes of a video: a thread has the values of its own sequence, so only the warps of its direction, which have other
// channels, are summed; then every thread adds its share to what former laps have left.
template <class Map>
struct LaneSums {
  static constexpr int kStep = kStateSums * 32;
  static constexpr int kWarps = Map::kThreads / 2 / 32;
  static constexpr int kRow = kStates + 4;  // floats of a thread, with a gap that spreads them over the banks
  static constexpr int kFloats = 2 * 2 * kWarps * 32 * kRow;
  float* memory;  // [direction][parity][warp][lane][kRow]
  int parity = 0;

  __device__ void place(float* memory_, const Place<Map>&) { memory = memory_; }
  __device__ float add_dC(const Place<Map>& at, float factor, const float (&values)[kStates], float* out) {
    add(at, factor, values, out + kStates * 32);
    return 0.f;
  }
  __device__ void add_dB(const Place<Map>& at, float factor, const float (&values)[kStates], float, int, float* out) {
    add(at, factor, values, out);
  }
  __device__ void finish_tile(const BackwardParams&, const Place<Map>&, int64_t, int, int, int) {}

 private:
  // Calls take turns with two buffers: at the barrier of one, all have read what the call before left in the other.
  __device__ void add(const Place<Map>& at, float factor, const float (&values)[kStates], float* out) {
    const int warps = at.threads / 32, warp = at.index / 32, lane = int(threadIdx.x) % 32;
    float* const own = memory + (at.direction * 2 + parity) * kWarps * 32 * kRow + lane * kRow;
#pragma unroll
    for (int i = 0; i < kStates; i += 4)
      *reinterpret_cast<float4*>(own + warp * 32 * kRow + i) =
          make_float4(factor * values[i], factor * values[i + 1], factor * values[i + 2], factor * values[i + 3]);
    barrier_of(1 + at.direction, at.threads);
    for (int n = 4 * warp; n < kStates; n += 4 * warps) {
      float4 sum = *reinterpret_cast<const float4*>(own + n);
      for (int w = 1; w < warps; ++w) {
        const float4 v = *reinterpret_cast<const float4*>(own + w * 32 * kRow + n);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      float* const to = out + n * 32 + lane;
      if (at.lap > 0) sum.x += to[0], sum.y += to[32], sum.z += to[64], sum.w += to[96];
      to[0] = sum.x, to[32] = sum.y, to[64] = sum.z, to[96] = sum.w;
    }
    parity ^= 1;
  }
};

template <bool kTurned>
__host__ __device__ ChannelSums<ChannelThreads<kTurned>> sums_for(ChannelThreads<kTurned>);
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
    int64_t rest = i / Map::kUnit;
    const int64_t lane = i % Map::kUnit, state = rest % p.states;
    rest /= p.states;
    const int64_t t = rest % p.length;
    rest /= p.length;
    const int64_t unit = rest % p.units, group = rest / p.units, q = unit * Map::kUnit + lane;
    if (q >= p.sequences) continue;
    const int n = int(state % kStates);
    const int value = Map::kUnit == 1 ? 2 * n + job.which : (job.which * kStates + n) * 32 + int(lane);
    const int slices = job.sharing * p.group_slices;
    float sum = 0.f;
    for (int d = job.first_direction; d <= job.last_direction; ++d)
      for (int slice = int(group) * slices; slice < (int(group) + 1) * slices; ++slice)
        sum += state_sums_of<Map>(p, int(state / kStates), slice, d, unit,
                                  p.dir[d].reverse ? p.length - 1 - t : t)[value];
    const int64_t offset = q / p.lanes * job.out.batch + q % p.lanes * job.out.lane + group * job.out.group;
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

template <class Map>
__global__ void __launch_bounds__(256) finish_parameters_kernel(const BackwardParams p, const ParameterGradients jobs) {
  for (int j = 0; j < jobs.count; ++j) {
    const ParameterGradient& job = jobs.job[j];
    const int64_t count = p.channels * job.width;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
      const int64_t channel = i % p.channels, n = i / p.channels;
      float sum = 0.f;
      for (int64_t part = 0; part < p.unit_step; ++part)
        for (int d = job.first_direction; d <= job.last_direction; ++d)
          sum += p.parameter_sums[((part * p.directions + d) * p.rows + job.first_row + n) * p.channels + channel];
      job.out[channel * job.width + n] = sum;
    }
  }
}

}  // namespace ssmvdm::cuda

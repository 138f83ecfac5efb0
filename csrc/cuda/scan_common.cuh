// What the forward and the backward scan share: parameters, the place of a thread, tiles of B and C, loads of several
// time steps, the meeting of the two directions.
//
// A thread walks one sequence of one direction in order and keeps 16 states of K channels in registers. A block holds a
// slice of channels and both directions. There are two ways to lay threads over the tensors:
//
//   ChannelThreads   neighbouring threads are neighbouring channels of one sequence. B and C are the same for all of
//                    them and are read from shared memory as broadcasts. For channels contiguous, and with loads of
//                    several steps at once for length contiguous.
//   LaneThreads<K>   the threads of a warp are 32 sequences, which share K channels; B and C differ from thread to
//                    thread and serve all warps of the block. For lanes contiguous.
//
// Each takes any strides; the layout only decides which is fast. Where the directions are merged they meet: up to the
// middle of the sequence each leaves its sums in `exchange`, and beyond it each finds those of the other.
#pragma once

#include "cuda/math.cuh"
#include "cuda/storage.cuh"

namespace ssmvdm::cuda {

constexpr int kStates = 16;  // walked at once; where there are more, they take turns
constexpr int kChunk = 4;    // time steps that are loaded together

// All tensors of a direction are seen in its own walking order: step s of the reverse direction is time length-1-s.
struct DirectionParams {
  Strided u, delta, z, y, B, C;
  const float *A, *B_const, *C_const, *D, *bias;
  int32_t B_sharing, C_sharing;  // groups of channels that share a group of B, of C
  bool reverse;
};

struct ScanParams {
  int64_t lanes, sequences;
  int32_t channels, length, states, directions;
  bool softplus, concatenate;
  float scale;
  DirectionParams dir[kMaxDirections];
  const float* initial_state;  // (batch, channels, states, lanes)
  float* last_state;
  // Division of the work: a block walks every `unit_step`-th unit of one slice. A unit is one sequence, or 32.
  int64_t units, unit_step;
  // A slice is `laps` times `width` channels, one after the other.
  int32_t group_channels, slices, group_slices, width, laps;
  float* exchange;  // (blocks, exchange_floats), or null where it lies in shared memory
  int64_t exchange_floats;

  __host__ __device__ bool meets() const { return directions == 2 && !concatenate; }
};

template <bool kBackward = false, int kOrders = kStates>
struct ChannelThreads {
  static constexpr int kChannels = 1, kUnit = 1;
  static constexpr int kSteps = kChunk;                 // loaded together
  static constexpr int kThreads = kBackward ? 256 : 384;  // of a block, at most
  // The thread keeps its states in an order of its own, state n ^ order() in the place of n, by which sums over
  // channels need no selections; the forward scan too, so that both sum y in one order. A tile has every four states in
  // all orders in which threads want them. With kOrders = 1, for any number of states, all threads have one order:
  // which states there are is then the same for a warp, and no thread has addresses of its own for each.
  static constexpr bool kOwnOrder = kOrders > 1;
  static constexpr int kTileSteps = 16;                      // of B and C in shared memory
  static constexpr int kFours = kOwnOrder ? 4 : 1;           // orders of four states
  // B and C of one step, and a gap: threads that fill a tile along time write to banks apart.
  static constexpr int kStepFloats = 2 * kFours * kStates + 4;
  __device__ static int order() { return int(threadIdx.x) / 2 % kOrders; }
  // Which four of a row has the fours of states `four`, in the row of order % 4: other ones in the second two rows, so
  // that sixteen threads, which want eight fours, find them in all 32 banks.
  __host__ __device__ static constexpr int place_of(int four, int order) { return four ^ (order & 2); }
};
template <int K>
struct LaneThreads {
  static constexpr int kChannels = K, kUnit = 32;
  static constexpr bool kOwnOrder = false;
  static constexpr int kSteps = K > 1 ? kChunk / K : kChunk;
  static constexpr int kThreads = 256;
  static constexpr int kTileSteps = K > 1 ? 8 : 4;
  static constexpr int kStepFloats = 2 * kStates * 32;
  __device__ static int order() { return 0; }
};

template <class Map>
constexpr int kTileFloats = Map::kTileSteps * Map::kStepFloats;

// Where a thread stands. Threads without a channel or a sequence of their own compute along with the last one and store
// nothing.
template <class Map>
struct Place {
  int direction, index, threads;  // threads of one direction, and which of them
  int group, slice, lap = 0;
  int first_channel, last_channel;  // last_channel: of the group
  int64_t batch, lane;                  // of the present sequence
  bool owns_sequence;
  int order = Map::order();             // of states

  __device__ explicit Place(const ScanParams& p) {
    has_at_most(Map::kThreads);
    threads = p.width / Map::kChannels * Map::kUnit;
    // By way of a shuffle the compiler knows that it is the same for the warp.
    direction = __shfl_sync(0xffffffffu, int(threadIdx.x) >= threads, 0);
    index = int(threadIdx.x) - direction * threads;
    slice = int(blockIdx.x % unsigned(p.slices));
    group = slice / p.group_slices;
    first_channel = group * p.group_channels + slice % p.group_slices * p.width * p.laps +
                    index / Map::kUnit * Map::kChannels;
    last_channel = (group + 1) * p.group_channels - 1;
  }
  __device__ void begin(const ScanParams& p, int64_t unit) {
    int64_t sequence = unit * Map::kUnit + int(threadIdx.x) % Map::kUnit;
    owns_sequence = sequence < p.sequences;
    if (!owns_sequence) sequence = p.sequences - 1;
    const Quotient at = divide(sequence, p.lanes);
    batch = at.whole, lane = at.rest;
    // By way of a shuffle the compiler cannot keep the addresses of all states from one sequence to the next.
    if constexpr (Map::kOwnOrder) order = __shfl_sync(0xffffffffu, Map::order(), int(threadIdx.x) % 32);
  }
  __device__ int64_t channel(int k) const {
    return first_channel + k < last_channel ? first_channel + k : last_channel;
  }
  __device__ bool owns_channel(int k) const { return first_channel + k <= last_channel; }
  __device__ bool owns(int k) const { return owns_sequence && owns_channel(k); }
  __device__ int state(int n) const { return n ^ order; }  // the n-th in registers
  __device__ int64_t sequence_offset(const Strided& x) const { return batch * x.batch + lane * x.lane; }
  __device__ int64_t row_offset(const Strided& x, int k) const { return sequence_offset(x) + channel(k) * x.row; }
};

// Where the rows begin of the tensors that a thread reads and writes: in shared memory, out of the way of what it needs
// registers for. [warp][row][lane], this thread's column.
template <class T, int kRows>
struct Rows {
  static constexpr int kFloats = kRows * int(sizeof(T*) / sizeof(float));  // of a thread
  T** own;

  __device__ explicit Rows(float* memory)
      : own(reinterpret_cast<T**>(memory) + int(threadIdx.x) / 32 * 32 * kRows + int(threadIdx.x) % 32) {}
  __device__ T*& operator[](int row) const { return own[row * 32]; }
};

// -- states ----------------------------------------------------------------------------------------------------------

// Calls f(n, state) for those in registers that there are: the n-th is `state` of the tensor.
template <bool kPlain, class Map, class F>
__device__ inline void for_each_state(const ScanParams& p, const Place<Map>& at, int first_state, const F& f) {
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    const int state = first_state + at.state(n);
    if (kPlain || state < p.states) f(n, state);
  }
}

// Where a thread finds the states of its k-th channel in a (batch, channels, states, lanes) tensor, p.lanes apart.
template <class Map>
__device__ inline int64_t states_offset(const ScanParams& p, const Place<Map>& at, int k) {
  return (at.batch * p.channels + at.channel(k)) * p.states * p.lanes + at.lane;
}
// Zero where there is no such tensor, state or row.
template <bool kPlain, class Map>
__device__ inline void load_states(float (&x)[kStates], const float* tensor, const ScanParams& p, const Place<Map>& at,
                                   int k, int first_state) {
#pragma unroll
  for (int n = 0; n < kStates; ++n) x[n] = 0.f;
  if (!tensor || !at.owns(k)) return;
  tensor += states_offset(p, at, k);
  for_each_state<kPlain>(p, at, first_state, [&](int n, int state) { x[n] = tensor[state * p.lanes]; });
}
template <bool kPlain, class Map>
__device__ inline void store_states(const float (&x)[kStates], float* tensor, const ScanParams& p,
                                    const Place<Map>& at, int k, int first_state) {
  if (!tensor || !at.owns(k)) return;
  tensor += states_offset(p, at, k);
  for_each_state<kPlain>(p, at, first_state, [&](int n, int state) { tensor[state * p.lanes] = x[n]; });
}

// A of the thread's channels times log2 e; zero where there is no such state.
template <bool kPlain, class Map>
__device__ inline void load_decay(const ScanParams& p, const Place<Map>& at, const float* A, int first_state,
                                  float (&decay)[Map::kChannels][kStates]) {
#pragma unroll
  for (int k = 0; k < Map::kChannels; ++k) {
    const float* const row = A + at.channel(k) * p.states;
#pragma unroll
    for (int n = 0; n < kStates; ++n) decay[k][n] = 0.f;
    for_each_state<kPlain>(p, at, first_state, [&](int n, int state) { decay[k][n] = row[state] * kLog2E; });
  }
}

// -- time ------------------------------------------------------------------------------------------------------------

// Steps are walked in whole chunks, and where these do not fit, at the end of the sequence or where the directions
// meet, one by one. Elements of a row from step s on; kAlongTime: those of a chunk are neighbours in memory, aligned. A
// row spans less than 2^31 elements, so that an address is one instruction.
template <class T>
struct alignas(sizeof(T) * kChunk) ChunkVector {
  T value[kChunk];
};
// Where the chunk from step s on lies lowest in memory.
__device__ inline int first_of_chunk(int s, int step) { return step < 0 ? -s - (kChunk - 1) : s; }
template <class T, int kCount, bool kAlongTime>
__device__ inline void load_steps(float (&x)[kCount], const T* row, int s, int64_t time) {
  const int step = int(time);
  if constexpr (kAlongTime && kCount == kChunk) {
    const auto v = *reinterpret_cast<const ChunkVector<T>*>(row + first_of_chunk(s, step));
#pragma unroll
    for (int i = 0; i < kChunk; ++i) x[i] = to_float(step < 0 ? v.value[kChunk - 1 - i] : v.value[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = to_float(row[(s + i) * step]);
  }
}
template <class T, int kCount, bool kAlongTime>
__device__ inline void store_steps(const float (&x)[kCount], T* row, int s, int64_t time) {
  const int step = int(time);
  if constexpr (kAlongTime && kCount == kChunk) {
    ChunkVector<T> v;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v.value[i] = from_float<T>(step < 0 ? x[kChunk - 1 - i] : x[i]);
    *reinterpret_cast<ChunkVector<T>*>(row + first_of_chunk(s, step)) = v;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) row[(s + i) * step] = from_float<T>(x[i]);
  }
}

// Takes the block through the steps [first, last), tile by tile: stage(begin, end) fills tiles for these steps of both
// directions, walk(begin, from, to, has_met) works on the steps [from, to) of the thread's own. Where the directions
// meet, all are done with what lies before the middle before any goes beyond it.
template <class Map, class Stage, class Walk>
__device__ inline void walk_tiles(int first, int last, int length, bool meets, bool is_second, const Stage& stage,
                                  const Walk& walk) {
  const int middle = meets ? (length + 1) / 2 : 0, own = is_second && meets ? length - middle : middle;
  for (int begin = first; begin < last; begin += Map::kTileSteps) {
    const int end = begin + Map::kTileSteps < last ? begin + Map::kTileSteps : last;
    __syncthreads();
    stage(begin, end);
    __syncthreads();
    for (int has_met = 0; has_met < 2; ++has_met) {
      if (has_met && begin < middle && middle <= end) __syncthreads();
      const int from = has_met && own > begin ? own : begin, to = !has_met && own < end ? own : end;
      walk(begin, from, to, bool(has_met));
    }
  }
}

// The same against the walking order.
template <class Map, class Stage, class Walk>
__device__ inline void walk_tiles_back(int first, int last, int length, bool meets, bool is_second, const Stage& stage,
                                       const Walk& walk) {
  const int middle = meets ? length / 2 : length, own = is_second && meets ? length - middle : middle;
  for (int end = last, begin; end > first; end = begin) {
    begin = (end - 1) / Map::kTileSteps * Map::kTileSteps;
    __syncthreads();
    stage(begin, end);
    __syncthreads();
    for (int has_met = 0; has_met < 2; ++has_met) {
      if (has_met && meets && begin <= middle && middle < end) __syncthreads();
      const int from = !has_met && own > begin ? own : begin, to = has_met && own < end ? own : end;
      walk(begin, from, to, bool(has_met));
    }
  }
}

// -- B and C ---------------------------------------------------------------------------------------------------------

// One step's B and C of four states, from a tile: [B | C][kFours rows][16] floats or [B | C][4][32 lanes][4].
template <bool kBackward, int kOrders>
__device__ inline void load_four(ChannelThreads<kBackward, kOrders> map, const float* step, int quarter, float (&B)[4],
                                 float (&C)[4]) {
  const float4* const four = reinterpret_cast<const float4*>(step) + map.order() % 4 * 4 +
                             map.place_of(quarter ^ map.order() / 4, map.order());
  const float4 b = *four, c = four[map.kFours * kStates / 4];
  B[0] = b.x, B[1] = b.y, B[2] = b.z, B[3] = b.w;
  C[0] = c.x, C[1] = c.y, C[2] = c.z, C[3] = c.w;
}
template <int K>
__device__ inline void load_four(LaneThreads<K>, const float* step, int quarter, float (&B)[4], float (&C)[4]) {
  const float4* const four = reinterpret_cast<const float4*>(step) + quarter * 32 + threadIdx.x % 32;
  const float4 b = *four, c = four[kStates * 8];
  B[0] = b.x, B[1] = b.y, B[2] = b.z, B[3] = b.w;
  C[0] = c.x, C[1] = c.y, C[2] = c.z, C[3] = c.w;
}

// Fills the tile of each direction with its steps [begin, end). States beyond the last are zero.
template <class T, class Map>
__device__ inline void stage_states(const ScanParams& p, const Place<Map>& at, int first_state, int begin, int end,
                                    float* tiles) {
  for (int d = 0; d < p.directions; ++d) {
    const DirectionParams& x = p.dir[d];
    const auto start = [&](const Strided& tensor, int sharing) {
      return element<const T>(tensor,
                              at.sequence_offset(tensor) + at.group / sharing * tensor.group + begin * tensor.time);
    };
    const T *B = start(x.B, x.B_sharing), *C = start(x.C, x.C_sharing);
    float* const tile = tiles + d * kTileFloats<Map>;
    const auto value = [&](const Strided& tensor, const T* from, int s, int n) {
      const int64_t state = first_state + n;
      return tensor && state < p.states ? to_float(from[state * tensor.row + s * tensor.time]) : 0.f;
    };
    if constexpr (Map::kUnit == 1) {
      const bool along_time = x.B.time == 1 || x.B.time == -1;
      for (int i = threadIdx.x; i < Map::kTileSteps * kStates; i += int(blockDim.x)) {
        const int s = along_time ? i % Map::kTileSteps : i / kStates,
                  n = along_time ? i / Map::kTileSteps : i % kStates;
        if (begin + s >= end) continue;
        const float b = value(x.B, B, s, n), c = value(x.C, C, s, n);
#pragma unroll
        for (int order = 0; order < Map::kFours; ++order) {
          const int four = Map::place_of(n / 4, order);
          float* const to = tile + s * Map::kStepFloats + order * kStates + 4 * four + (n % 4 ^ order);
          to[0] = b, to[Map::kFours * kStates] = c;
        }
      }
    } else {
      for (int i = threadIdx.x / 32; i < (end - begin) * kStates / 4; i += int(blockDim.x) / 32) {
        const int s = i / (kStates / 4), n = i * 4 % kStates;
        const auto four = [&](const Strided& tensor, const T* from) {
          return make_float4(value(tensor, from, s, n), value(tensor, from, s, n + 1), value(tensor, from, s, n + 2),
                             value(tensor, from, s, n + 3));
        };
        float4* const to = reinterpret_cast<float4*>(tile + s * Map::kStepFloats + n * 32) + threadIdx.x % 32;
        to[0] = four(x.B, B), to[kStates * 8] = four(x.C, C);
      }
    }
  }
}

// B and C that are constant in time take the place of what the tile has.
template <class Map>
struct ConstantStates {
  const float *B, *C;  // of the thread's channel, or null
  int first_state, states;

  __device__ ConstantStates(const ScanParams& p, const DirectionParams& x, const Place<Map>& at, int first)
      : first_state(first), states(p.states) {
    const int64_t row = at.channel(0) * p.states + first;
    B = x.B_const ? x.B_const + row : nullptr;
    C = x.C_const ? x.C_const + row : nullptr;
  }
  __device__ bool has(const Place<Map>& at, int n) const { return first_state + at.state(n) < states; }
  __device__ void load_four(const Place<Map>& at, int quarter, float (&b)[4], float (&c)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (!has(at, 4 * quarter + j)) continue;
      if (B) b[j] = B[at.state(4 * quarter + j)];
      if (C) c[j] = C[at.state(4 * quarter + j)];
    }
  }
};

// One step of K channels: h = 2^(delta decay) h + delta u B, and sum = sum + <C, h>.
template <class Map, bool kPlain>
__device__ inline void step(float (&h)[Map::kChannels][kStates], const float (&decay)[Map::kChannels][kStates],
                            const float* bc, const Place<Map>& at, const ConstantStates<Map>& constant,
                            const float (&delta)[Map::kChannels], const float (&delta_u)[Map::kChannels],
                            float (&sum)[Map::kChannels]) {
#pragma unroll
  for (int quarter = 0; quarter < kStates / 4; ++quarter) {
    float B[4], C[4];
    load_four(Map{}, bc, quarter, B, C);
    if (!kPlain) constant.load_four(at, quarter, B, C);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = 4 * quarter + j;
      if (!kPlain && !constant.has(at, n)) continue;
#pragma unroll
      for (int k = 0; k < Map::kChannels; ++k) {
        h[k][n] = fmaf(exp2_approx(delta[k] * decay[k][n]), h[k][n], delta_u[k] * B[j]);
        sum[k] = fmaf(h[k][n], C[j], sum[k]);
      }
    }
  }
}

// -- the meeting of two directions -----------------------------------------------------------------------------------

// Which turn it is: bit 0, that of the first states; bit 1, that of the last.
constexpr int kOnlyTurn = 3;
__device__ inline int turn_of(const ScanParams& p, int first_state) {
  return (first_state == 0 ? 1 : 0) | (first_state + kStates >= p.states ? 2 : 0);
}

// Whether a walk is the last of those that add to a quantity, one after the other: the directions where they meet in
// it, and the turns of states where there are more than 16.
__device__ inline bool is_last(bool meets, int turn, bool has_met) { return (turn & 2) && (!meets || has_met); }

// Adds to values of steps what other walks have left at `waiting`, `row` floats from step to step, in `column` of a
// row; leaves the sums there if there are walks to come, and returns whether there are none.
template <int kCount>
__device__ inline bool complete(float (&values)[kCount], float* waiting, int row, int column, bool meets, int turn,
                                bool has_met) {
  const bool is_first = (turn & 1) && !(meets && has_met);
  if (!is_first) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += (waiting + i * row)[column];
  }
  if (is_last(meets, turn, has_met)) return true;
#pragma unroll
  for (int i = 0; i < kCount; ++i) (waiting + i * row)[column] = values[i];
  return false;
}

}  // namespace ssmvdm::cuda

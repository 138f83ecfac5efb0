// The work of one thread of the backward scan; scan_backward.cu says what it is.
#pragma once

#include "cuda/scan_sums.cuh"

namespace ssmvdm::cuda {

// Where delta, its slope and u lie in the column of a chunk, behind the states.
constexpr int kDeltas = kStates / 4 * 32, kSlopes = kDeltas + 32, kInputs = kSlopes + 32;

// The tensors of which a thread reads or writes one row.
enum Row { kU, kDelta, kZ, kDy, kDu, kDdelta, kDz, kY, kRows };

template <class T, class Map, bool kPlain, bool kAlongTime>
struct BackwardThread {
  static_assert(Map::kChannels == 1);
  // Steps of the adjoint with a and h in registers; where there are sums of dB and dC for each state too, fewer.
  static constexpr int kTogether = kPlain ? kChunk : 2;
  using Sums = decltype(sums_for(Map{}));
  using Meeting = Exchange<Map, kPlain>;
  const BackwardParams& p;
  Place<Map> at;
  const DirectionParams& x;
  const GradDirectionParams& grad;
  const float* tile;
  Rows<T, kRows> rows;
  // What is kept of chunks and of segments lies in columns: [..][warp][float4][lane], this thread's.
  float4 *chunks, *segments;
  float* exchange;  // this thread's column, at the first step of its own
  Sums sums;
  float decay[1][kStates], h[kStates], q[kStates], bias, D;
  float dA[kStates], dB_const[kStates], dC_const[kStates], dD, dbias;
  int first_state, turn;
  bool owns;

  __device__ BackwardThread(const BackwardParams& p_, float* shared)
      : p(p_),
        at(p_),
        x(p_.dir[at.direction]),
        grad(p_.grad[at.direction]),
        tile(shared + at.direction * kTileFloats<Map>),
        rows(shared + p_.directions * kTileFloats<Map>) {
    shared += p.directions * kTileFloats<Map> + decltype(rows)::kFloats * int(blockDim.x);
    sums.place(shared, at);
    if (p.wants_states) shared += Sums::floats(int(blockDim.x));
    const auto column = [&](float* memory, int64_t floats, int each) {
      float* const own = memory ? memory + blockIdx.x * floats : shared;
      if (!memory) shared += floats;
      return reinterpret_cast<float4*>(own) + int(threadIdx.x) / 32 * 32 * each + int(threadIdx.x) % 32;
    };
    chunks = column(p.chunk_states, p.chunk_floats, kChunkFloats / 4);
    segments = p.segment_states ? column(p.segment_states, p.segment_floats, kStates / 4) : nullptr;
    exchange = (p.exchange ? p.exchange + blockIdx.x * p.exchange_floats : shared) + at.index +
               (x.reverse ? int64_t(p.length - 1) * Meeting::row(p) : 0);
  }

  __device__ void begin_channel() {
    bias = x.bias ? x.bias[at.channel(0)] : 0.f;
    D = x.D ? x.D[at.channel(0)] : 0.f;
    dD = dbias = 0.f;
    const Strided* const tensors[kRows] = {&x.u,       &x.delta,      &x.z,     &x.y,
                                           &grad.du, &grad.ddelta, &grad.dz, &grad.forward_y};
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows[i] = element<T>(*tensors[i], at.row_offset(*tensors[i], 0));
  }
  __device__ void begin_states(int first, int turn_) {
    first_state = first, turn = turn_, owns = at.owns(0);
    load_decay<kPlain>(p, at, x.A, first, decay);
    load_states<kPlain>(h, p.initial_state, p, at, 0, first);
    load_states<kPlain>(q, p.dlast_state, p, at, 0, first);
#pragma unroll
    for (int n = 0; n < kStates; ++n) decay[0][n] = own(decay[0][n]), dA[n] = dB_const[n] = dC_const[n] = 0.f;
  }

  // Where time is contiguous all tensors share one step, and so all their rows one offset.
  __device__ int step_of(const Strided& tensor) const { return kAlongTime ? (x.reverse ? -1 : 1) : int(tensor.time); }
  template <int kCount>
  __device__ void load(float (&values)[kCount], Row row, const Strided& tensor, int s) const {
    load_steps<T, kCount, kAlongTime>(values, rows[row], s, step_of(tensor));
  }
  template <int kCount>
  __device__ void store(const float (&values)[kCount], Row row, const Strided& tensor, int s) const {
    if (tensor && at.owns(0))
      store_steps<T, kCount, kAlongTime>(values, rows[row], s, step_of(tensor));
  }
  // What a thread without a row of its own has read must not reach sums over threads.
  __device__ float own(float value) const { return owns ? value : 0.f; }

  // What is kept of the chunk to which step s of a segment belongs: h before it, and of its steps delta, its slope, u.
  __device__ float4* chunk_of(int s) const { return chunks + unsigned(s) / kChunk * (kChunkFloats / 4) * blockDim.x; }
  __device__ float4* segment_of(int segment) const { return segments + segment * (kStates / 4) * int(blockDim.x); }
  __device__ void keep(float4* kept) const {
#pragma unroll
    for (int i = 0; i < kStates / 4; ++i)
      kept[i * 32] = make_float4(h[4 * i], h[4 * i + 1], h[4 * i + 2], h[4 * i + 3]);
  }
  __device__ void restore(const float4* kept, float (&state)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates / 4; ++i) {
      const float4 v = kept[i * 32];
      state[4 * i] = v.x, state[4 * i + 1] = v.y, state[4 * i + 2] = v.z, state[4 * i + 3] = v.w;
    }
  }

  // -- A: the states --------------------------------------------------------------------------------------------------

  // The steps [from, to) of the tile that begins with `begin`, in the segment that begins with `origin`. Of each chunk
  // is kept what the adjoint takes from it. h is walked up to the step `last`.
  __device__ void walk_states(int begin, int from, int to, int origin, int last) {
#pragma unroll 1
    for (int s = from; s < to;) {
      float4* const kept = chunk_of(s - origin);
      if (s % kChunk == 0) keep(kept);
      const bool is_chunk = s + kChunk <= to, is_needed = s < last;
      const float* bc = tile + (s - begin) * Map::kStepFloats;
      if (is_chunk)
        states_of_steps<kChunk>(bc, s, kept, is_needed);
      else
        states_of_steps<1>(bc, s, kept, is_needed);
      s += is_chunk ? kChunk : 1;
    }
  }

  template <int kCount>
  __device__ void states_of_steps(const float* bc, int s, float4* kept, bool is_needed) {
    float us[kCount], dt[kCount], slope[kCount], a[kStates];
    load(dt, kDelta, x.delta, s);
    load(us, kU, x.u, s);
#pragma unroll
    for (int i = 0; i < kCount; ++i) dt[i] += bias, slope[i] = 1.f;
    if (p.softplus) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) dt[i] = softplus(dt[i], &slope[i]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) us[i] = own(us[i]), dt[i] = own(dt[i]);
    keep_steps(us, kept, kInputs, s);
    keep_steps(dt, kept, kDeltas, s);
    keep_steps(slope, kept, kSlopes, s);
    if (!is_needed) return;
    const ConstantStates<Map> constant(p, x, at, first_state);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      states_after(a, h, h, bc + i * Map::kStepFloats, constant, dt[i], dt[i] * us[i]);
  }
  template <int kCount>
  __device__ static void keep_steps(const float (&x)[kCount], float4* kept, int offset, int s) {
    if constexpr (kCount == kChunk)
      kept[offset] = make_float4(x[0], x[1], x[2], x[3]);
    else
      reinterpret_cast<float*>(kept + offset)[s % kChunk] = x[0];
  }
  template <int kCount>
  __device__ static void restore_steps(float (&x)[kCount], const float4* kept, int offset, int s) {
    if constexpr (kCount == kChunk) {
      const float4 v = kept[offset];
      x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = reinterpret_cast<const float*>(kept + offset)[s % kChunk + i];
    }
  }

  // -- B: the adjoint -------------------------------------------------------------------------------------------------

  // The steps [from, to) of the tile that begins with `begin`, the last one first, kTogether at a time. Where these are
  // not whole, as the sequence ends or the directions meet, they go step by step.
  template <bool kHasMet>
  __device__ void walk_adjoint(int begin, int from, int to, int origin, int64_t unit) {
#pragma unroll 1
    for (int s = to; s > from;) {
      const int first = (s - 1) & -kTogether;
      const bool is_whole = s == first + kTogether && first >= from;
      s = is_whole ? first : s - 1;
      const int chunk = s & -kChunk;
      const float4* kept = chunk_of(chunk - origin);
      const float* bc = tile + (s - begin) * Map::kStepFloats;
      if (is_whole) {
        adjoint_of_steps<kTogether>(bc, kept, chunk, s, s - begin, unit, kHasMet);
      } else {
        adjoint_of_steps<1>(bc, kept, chunk, s, s - begin, unit, kHasMet);
      }
    }
  }

  template <int kCount>
  __device__ void adjoint_of_steps(const float* bc, const float4* kept, int chunk, int s, int step_in_tile,
                                   int64_t unit, bool has_met) {
    float us[kCount], dt[kCount], slope[kCount], g[kCount], gates[kCount], dzs[kCount], ys[kCount], ddelta[kCount];
    float a[kCount][kStates], h[kCount + 1][kStates];  // h[i]: before step s + i
    const ConstantStates<Map> constant(p, x, at, first_state);
    load(g, kDy, x.y, s);
    restore(kept, h[0]);
    if (kCount < kChunk)
      for (int skipped = chunk; skipped < s; ++skipped)
        advance(h[0], bc + (skipped - s) * Map::kStepFloats, kept, skipped);
    restore_steps(us, kept, kInputs, s);
    restore_steps(dt, kept, kDeltas, s);
    float* const dBC = state_sums_of<Map>(p, first_state / kStates, at.slice, at.direction, unit, s);
#pragma unroll
    for (int i = 0; i < kCount; ++i) g[i] = own(g[i]), gates[i] = p.scale;
    if (x.z) load_gates(gates, dzs, g, s);
#pragma unroll
    for (int i = 0; i < kCount; ++i) g[i] *= gates[i];
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      states_after(a[i], h[i], h[i + 1], bc + i * Map::kStepFloats, constant, dt[i], dt[i] * us[i]);
    // delta once more, behind a barrier: from the one at hand the compiler would compute exponentials a second time.
    __syncwarp();
    restore_steps(dt, kept, kDeltas, s);
#pragma unroll
    for (int i = kCount - 1; i >= 0; --i) {
      if (kCount == kChunk && i == 0) restore(kept, h[0]);  // its registers had other uses meanwhile
      const float delta_u = dt[i] * us[i];
      float y = kPlain || turn & 1 ? D * us[i] : 0.f;  // as the forward scan sums it, bit for bit
      float along_A = 0.f, along_B = 0.f, dh[kStates];
      adjoint_of_step(a[i], h[i], h[i + 1], bc + i * Map::kStepFloats, constant, dt[i], delta_u, g[i], y, along_A,
                      along_B, dh);
      if (p.wants_states) sums.add(at, g[i], h[i + 1], delta_u, dh, step_in_tile + i, dBC + i * Sums::kStep);
      float du = dt[i] * along_B;
      ddelta[i] = fmaf(along_A, kLn2, us[i] * along_B);
      if (kPlain || turn & 1) du = fmaf(D, g[i], du), dD = fmaf(g[i], us[i], dD);
      ys[i] = y, us[i] = du;
    }
    restore_steps(slope, kept, kSlopes, s);
#pragma unroll
    for (int i = kCount - 1; i >= 0; --i) ddelta[i] *= slope[i], dbias += ddelta[i];
    float* const waiting = exchange + int64_t(s) * exchange_step();
    if (p.wants_outputs) finish_outputs(ys, gates, dzs, s, waiting, has_met);
    if (is_complete(us, kOfDu, waiting, turn, has_met)) store(us, kDu, grad.du, s);
    if (is_complete(ddelta, kOfDdelta, waiting, turn, has_met)) store(ddelta, kDdelta, grad.ddelta, s);
  }

  // What y is to be multiplied with for the output, and for dz.
  template <int kCount>
  __device__ void load_gates(float (&gates)[kCount], float (&dzs)[kCount], const float (&dy)[kCount], int s) const {
    load(dzs, kZ, x.z, s);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      gates[i] *= silu(dzs[i], &dzs[i]);
      dzs[i] *= p.scale * dy[i];
    }
  }

  // From where a step waits to where the next does.
  __device__ int exchange_step() const { return x.reverse ? -Meeting::row(p) : Meeting::row(p); }
  // Adds what others have left of a quantity; whether it is complete then.
  template <int kCount>
  __device__ bool is_complete(float (&values)[kCount], Quantity quantity, float* waiting, int turn_of_it,
                              bool has_met) const {
    const bool meets = p.meets_in[quantity];
    return complete(values, waiting, exchange_step(), Meeting::column(quantity, meets, at.direction), meets, turn_of_it,
                    has_met);
  }

  // From y to the outputs, and to dz, which a second direction with a dy of its own may have to complete. gates, dzs:
  // what y is to be multiplied with.
  template <int kCount>
  __device__ void finish_outputs(float (&ys)[kCount], const float (&gates)[kCount], float (&dzs)[kCount], int s,
                                 float* waiting, bool has_met) {
    if (!is_complete(ys, kOfY, waiting, turn, has_met)) return;
    if (grad.dz) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) dzs[i] *= ys[i];
      if (is_complete(dzs, kOfDz, waiting, kOnlyTurn, has_met)) store(dzs, kDz, grad.dz, s);
    }
    if (!grad.forward_y) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) ys[i] *= gates[i];
    store(ys, kY, grad.forward_y, s);
  }

  // h over one step that is not looked at.
  __device__ void advance(float (&state)[kStates], const float* bc, const float4* kept, int s) const {
    float u[1], dt[1], a[kStates];
    restore_steps(u, kept, kInputs, s);
    restore_steps(dt, kept, kDeltas, s);
    states_after(a, state, state, bc, ConstantStates<Map>(p, x, at, first_state), dt[0], dt[0] * u[0]);
  }

  __device__ void states_after(float (&a)[kStates], const float (&before)[kStates], float (&after)[kStates],
                               const float* bc, const ConstantStates<Map>& constant, float dt, float du) const {
#pragma unroll
    for (int quarter = 0; quarter < kStates / 4; ++quarter) {
      float B[4], C[4];
      load_four(Map{}, bc, quarter, B, C);
      if (!kPlain) constant.load_four(at, quarter, B, C);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = 4 * quarter + j;
        a[n] = exp2_approx(dt * decay[0][n]);
        after[n] = fmaf(a[n], before[n], du * B[j]);
      }
    }
  }

  // Turns q from after the step to before it. Sums: y = <C, h after it>, <A, d(delta A)> log2 e and <dh, B>.
  __device__ void adjoint_of_step(const float (&a)[kStates], const float (&before)[kStates], float (&after)[kStates],
                                  const float* bc, const ConstantStates<Map>& constant, float dt, float du, float g,
                                  float& y, float& along_A, float& along_B, float (&dh)[kStates]) {
#pragma unroll
    for (int quarter = 0; quarter < kStates / 4; ++quarter) {
      float B[4], C[4];
      load_four(Map{}, bc, quarter, B, C);
      if (!kPlain) constant.load_four(at, quarter, B, C);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = 4 * quarter + j;
        dh[n] = 0.f;
        if (!kPlain && !constant.has(at, n)) {
          after[n] = 0.f;
          continue;
        }
        y = fmaf(after[n], C[j], y);
        dh[n] = fmaf(g, C[j], q[n]);
        along_B = fmaf(dh[n], B[j], along_B);
        q[n] = a[n] * dh[n];
        const float d_product = q[n] * before[n];  // of delta A
        along_A = fmaf(d_product, decay[0][n], along_A);
        dA[n] = fmaf(d_product, dt, dA[n]);
        if (!kPlain) dB_const[n] = fmaf(du, dh[n], dB_const[n]), dC_const[n] = fmaf(g, after[n], dC_const[n]);
      }
    }
  }

  // -- sums over sequences --------------------------------------------------------------------------------------------

  // Adds the thread's sums of this unit to those of the block, one row of channels for each.
  __device__ void end_states(bool is_first_unit) {
    store_states<kPlain>(q, p.dinitial_state, p, at, 0, first_state);
    const int64_t part = int64_t(blockIdx.x / unsigned(p.slices)) * p.directions + at.direction;
    float* const sum = p.parameter_sums + part * p.rows * p.channels + at.channel(0);
    const int64_t channels = p.channels, constants = p.states + 2;
    add_states(sum, dA, is_first_unit);
    if (!kPlain && x.B_const) add_states(sum + constants * channels, dB_const, is_first_unit);
    if (!kPlain && x.C_const) add_states(sum + (constants + p.states) * channels, dC_const, is_first_unit);
    if (turn & 2) {
      add_one(sum + p.states * channels, dD, is_first_unit);
      add_one(sum + (p.states + 1) * channels, dbias, is_first_unit);
    }
  }

 private:
  __device__ void add_states(float* sum, const float (&values)[kStates], bool is_first_unit) const {
    if constexpr (Map::kUnit == 1) {
#pragma unroll
      for (int n = 0; n < kStates; ++n) add_row(sum, at.state(n), values[n], is_first_unit);
    } else {
      const float value = sum_lanes(values);
      if (threadIdx.x % 2 == 0) add_row(sum, int(threadIdx.x) % 32 / 2, value, is_first_unit);
    }
  }
  __device__ void add_row(float* sum, int n, float value, bool is_first_unit) const {
    if (first_state + n >= p.states || !at.owns_channel(0)) return;
    sum += int64_t(first_state + n) * p.channels;
    *sum = is_first_unit ? value : *sum + value;
  }
  __device__ void add_one(float* sum, float value, bool is_first_unit) const {
    if constexpr (Map::kUnit > 1) value = warp_sum(value);
    if (at.owns_channel(0) && (Map::kUnit == 1 || threadIdx.x % 32 == 0)) *sum = is_first_unit ? value : *sum + value;
  }
};

}  // namespace ssmvdm::cuda

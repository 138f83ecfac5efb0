// The work of one thread of the backward scan; scan_backward.cu says what it is.
#pragma once

#include "cuda/scan_sums.cuh"

namespace ssmvdm::cuda {

// The tensors of which a thread reads or writes one row; where these begin lies in shared memory, out of the way.
enum Row { kU, kDelta, kZ, kDy, kDu, kDdelta, kDz, kY, kRows };

template <class T, class Map, bool kPlain, bool kAlongTime>
struct BackwardThread {
  static_assert(Map::kChannels == 1);
  using Sums = decltype(sums_for(Map{}));
  const BackwardParams& p;
  Place<Map> at;
  const DirectionParams& x;
  const GradDirectionParams& grad;
  const float* tile;
  T** rows;                               // [kRows][threads of the block], this thread's column
  float4 *chunk_states, *segment_states;  // [..][4][threads of the block], this thread's column
  float* exchange;
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
        tile(shared + at.direction * kTileFloats<Map>) {
    shared += p.directions * kTileFloats<Map>;
    rows = reinterpret_cast<T**>(shared) + threadIdx.x;
    shared += kRows * 2 * blockDim.x;
    sums.place(shared, at);
    if (p.wants_states) shared += Sums::kFloats;
    const auto column = [&](float* memory, int64_t floats) {
      float* const own = memory ? memory + blockIdx.x * floats : shared;
      if (!memory) shared += floats;
      return reinterpret_cast<float4*>(own) + threadIdx.x;
    };
    chunk_states = column(p.chunk_states, p.chunk_floats);
    segment_states = p.segment_states ? column(p.segment_states, p.segment_floats) : nullptr;
    exchange = p.exchange ? p.exchange + blockIdx.x * p.exchange_floats : shared;
  }

  __device__ void begin_channel() {
    bias = x.bias ? x.bias[at.channel(0)] : 0.f;
    D = x.D ? x.D[at.channel(0)] : 0.f;
    dD = dbias = 0.f;
    const Strided* const tensors[kRows] = {&x.u,       &x.delta,      &x.z,     &x.y,
                                           &grad.du, &grad.ddelta, &grad.dz, &grad.forward_y};
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      rows[i * int(blockDim.x)] = element<T>(*tensors[i], at.row_offset(*tensors[i], 0));
  }
  __device__ void begin_states(int first, int turn_) {
    first_state = first, turn = turn_, owns = at.owns(0);
    load_decay(p, at, x.A, first, decay);
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      const int state = first + at.state(n);
      const bool is_given = owns && state < p.states;
      decay[0][n] = own(decay[0][n]);
      h[n] = p.initial_state && is_given ? p.initial_state[at.state_index(p, 0, state)] : 0.f;
      q[n] = p.dlast_state && is_given ? p.dlast_state[at.state_index(p, 0, state)] : 0.f;
      dA[n] = dB_const[n] = dC_const[n] = 0.f;
    }
  }

  __device__ Exchange at_exchange(const Waiting& quantity) const {
    return Exchange(exchange + quantity.offset, at.threads, quantity.meets, at.direction, p.length, at.index);
  }
  __device__ int time_of(int s) const { return x.reverse ? p.length - 1 - s : s; }

  template <int kCount>
  __device__ void load(float (&values)[kCount], Row row, const Strided& tensor, int s) const {
    load_steps<T, kCount, kAlongTime>(values, rows[row * int(blockDim.x)], s, tensor.time);
  }
  template <int kCount>
  __device__ void store(const float (&values)[kCount], Row row, const Strided& tensor, int s) const {
    if (tensor && at.owns(0))
      store_steps<T, kCount, kAlongTime>(values, rows[row * int(blockDim.x)], s, tensor.time);
  }
  // What a thread without a row of its own has read must not reach sums over threads.
  __device__ float own(float value) const { return owns ? value : 0.f; }

  __device__ void keep(float4* kept) const {
#pragma unroll
    for (int i = 0; i < kStates / 4; ++i)
      kept[i * int(blockDim.x)] = make_float4(h[4 * i], h[4 * i + 1], h[4 * i + 2], h[4 * i + 3]);
  }
  __device__ void restore(const float4* kept, float (&state)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates / 4; ++i) {
      const float4 v = kept[i * int(blockDim.x)];
      state[4 * i] = v.x, state[4 * i + 1] = v.y, state[4 * i + 2] = v.z, state[4 * i + 3] = v.w;
    }
  }

  // -- A: the states ---------------------------------------------------------------------------------------------------

  // The steps [from, to) of the tile that begins with `begin`; h is kept at every `distance`-th step from `origin` on.
  __device__ void walk_states(int begin, int from, int to, float4* kept, int origin, int distance) {
#pragma unroll 1
    for (int s = from; s < to;) {
      if ((s - origin) % distance == 0) keep(kept + (s - origin) / distance * (kStates / 4) * int(blockDim.x));
      const float* bc = tile + (s - begin) * Map::kStepFloats;
      const bool is_chunk = s + kChunk <= to;
      if (is_chunk)
        states_of_steps<kChunk>(bc, s);
      else
        states_of_steps<1>(bc, s);
      s += is_chunk ? kChunk : 1;
    }
  }

  template <int kCount>
  __device__ void states_of_steps(const float* bc, int s) {
    float us[kCount], dt[kCount], a[kStates];
    load(us, kU, x.u, s);
    load(dt, kDelta, x.delta, s);
    const ConstantStates<Map> constant(p, x, at, first_state);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      dt[i] += bias;
      if (p.softplus) dt[i] = softplus(dt[i]);
      states_after(a, h, h, bc + i * Map::kStepFloats, constant, own(dt[i]), own(dt[i]) * own(us[i]));
    }
  }

  // -- B: the adjoint --------------------------------------------------------------------------------------------------

  // The steps [from, to) of the tile that begins with `begin`, the last one first. Chunks that are not whole, where the
  // sequence ends or the directions meet, go step by step.
  __device__ void walk_adjoint(int begin, int from, int to, int origin, int64_t unit, bool has_met) {
#pragma unroll 1
    for (int s = to; s > from;) {
      const int chunk = (s - 1) / kChunk * kChunk;
      const bool is_whole = s == chunk + kChunk && chunk >= from;
      s = is_whole ? chunk : s - 1;
      const float4* kept = chunk_states + (chunk - origin) / kChunk * (kStates / 4) * int(blockDim.x);
      const float* bc = tile + (s - begin) * Map::kStepFloats;
      if (is_whole) {
        adjoint_of_steps<kChunk>(bc, kept, chunk, s, s - begin, unit, has_met);
      } else {
        adjoint_of_steps<1>(bc, kept, chunk, s, s - begin, unit, has_met);
      }
    }
  }

  template <int kCount>
  __device__ void adjoint_of_steps(const float* bc, const float4* kept, int chunk, int s, int step_in_tile, int64_t unit,
                                   bool has_met) {
    float us[kCount], dt[kCount], slope[kCount], g[kCount], dzs[kCount], ys[kCount], dC[kCount];
    float a[kCount][kStates], before[kCount][kStates];  // before[i]: h before step s + i
    const ConstantStates<Map> constant(p, x, at, first_state);
    load(us, kU, x.u, s);
    load(dt, kDelta, x.delta, s);
    load(g, kDy, x.y, s);
    if (x.z) load(dzs, kZ, x.z, s);
    restore(kept, before[0]);
    if (kCount == 1)
      for (int skipped = chunk; skipped < s; ++skipped) advance(before[0], bc + (skipped - s) * Map::kStepFloats, skipped);
    float* const dBC = state_sums_of<Map>(p, first_state / kStates, at.slice, at.direction, unit, s);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      us[i] = own(us[i]), g[i] = own(g[i]) * p.scale;
      if (x.z) {
        const float dy = g[i];
        g[i] *= silu(dzs[i], &dzs[i]);
        dzs[i] *= dy;
      }
      dt[i] += bias, slope[i] = 1.f;
      if (p.softplus) dt[i] = softplus(dt[i], &slope[i]);
      dt[i] = own(dt[i]);
      float after[kStates];
      states_after(a[i], before[i], after, bc + i * Map::kStepFloats, constant, dt[i], dt[i] * us[i]);
      ys[i] = kPlain || turn & 1 ? D * us[i] : 0.f;
      output_of_step(ys[i], after, bc + i * Map::kStepFloats, constant);
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        if (!kPlain && !constant.has(at, n)) after[n] = 0.f;
        if (!kPlain) dC_const[n] = fmaf(g[i], after[n], dC_const[n]);
        if (i + 1 < kCount) before[i + 1][n] = after[n];
      }
      if (p.wants_states) dC[i] = sums.add_dC(at, g[i], after, dBC + i * Sums::kStep);
    }
    if (p.wants_outputs) finish_outputs(ys, dzs, s, has_met);
#pragma unroll
    for (int i = kCount - 1; i >= 0; --i) {
      float along_A = 0.f, along_B = 0.f, dh[kStates];
      adjoint_of_step(a[i], before[i], bc + i * Map::kStepFloats, constant, dt[i], dt[i] * us[i], g[i], along_A, along_B,
                      dh);
      if (p.wants_states)
        sums.add_dB(at, dt[i] * us[i], dh, dC[i], step_in_tile + i, dBC + i * Sums::kStep);
      float du = dt[i] * along_B, ddelta = fmaf(along_A, kLn2, us[i] * along_B) * slope[i];
      if (kPlain || turn & 1) du = fmaf(D, g[i], du), dD = fmaf(g[i], us[i], dD);
      dbias += ddelta;
      us[i] = du, slope[i] = ddelta;
    }
    if (complete(us, p.du, s, turn, has_met)) store(us, kDu, grad.du, s);
    if (complete(slope, p.ddelta, s, turn, has_met)) store(slope, kDdelta, grad.ddelta, s);
  }

  // Adds what others have left of a quantity; whether it is complete then.
  template <int kCount>
  __device__ bool complete(float (&values)[kCount], const Waiting& quantity, int s, int turn_of_it, bool has_met) const {
    const Exchange waiting = at_exchange(quantity);
    waiting.add(values, time_of(s), x.reverse, 0, turn_of_it, has_met);
    return waiting.is_last(turn_of_it, has_met);
  }

  // From y to the outputs, and to dz, which a second direction with a dy of its own may have to complete. dzs: what is to
  // be multiplied with y.
  template <int kCount>
  __device__ void finish_outputs(float (&ys)[kCount], float (&dzs)[kCount], int s, bool has_met) {
    if (!complete(ys, p.y, s, turn, has_met)) return;
    if (grad.dz) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) dzs[i] *= ys[i];
      if (complete(dzs, p.dz, s, kOnlyTurn, has_met)) store(dzs, kDz, grad.dz, s);
    }
    if (!grad.forward_y) return;
    if (x.z) load(dzs, kZ, x.z, s);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float slope;
      ys[i] *= p.scale * (x.z ? silu(dzs[i], &slope) : 1.f);
    }
    store(ys, kY, grad.forward_y, s);
  }

  // h over one step that is not looked at.
  __device__ void advance(float (&state)[kStates], const float* bc, int s) const {
    float u[1], dt[1], a[kStates];
    load(u, kU, x.u, s);
    load(dt, kDelta, x.delta, s);
    dt[0] += bias;
    if (p.softplus) dt[0] = softplus(dt[0]);
    states_after(a, state, state, bc, ConstantStates<Map>(p, x, at, first_state), own(dt[0]), own(dt[0]) * own(u[0]));
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

  // y + <C, h>.
  __device__ void output_of_step(float& y, const float (&state)[kStates], const float* bc,
                                 const ConstantStates<Map>& constant) const {
#pragma unroll
    for (int quarter = 0; quarter < kStates / 4; ++quarter) {
      float B[4], C[4];
      load_four(Map{}, bc, quarter, B, C);
      if (!kPlain) constant.load_four(at, quarter, B, C);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (kPlain || constant.has(at, 4 * quarter + j)) y = fmaf(state[4 * quarter + j], C[j], y);
    }
  }

  __device__ void adjoint_of_step(const float (&a)[kStates], const float (&before)[kStates], const float* bc,
                                  const ConstantStates<Map>& constant, float dt, float du, float g, float& along_A,
                                  float& along_B, float (&dh)[kStates]) {
#pragma unroll
    for (int quarter = 0; quarter < kStates / 4; ++quarter) {
      float B[4], C[4];
      load_four(Map{}, bc, quarter, B, C);
      if (!kPlain) constant.load_four(at, quarter, B, C);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = 4 * quarter + j;
        dh[n] = 0.f;
        if (!kPlain && !constant.has(at, n)) continue;
        dh[n] = fmaf(g, C[j], q[n]);
        along_B = fmaf(dh[n], B[j], along_B);
        q[n] = a[n] * dh[n];
        const float d_product = q[n] * before[n];  // of delta A
        along_A = fmaf(d_product, decay[0][n], along_A);
        dA[n] = fmaf(d_product, dt, dA[n]);
        if (!kPlain) dB_const[n] = fmaf(du, dh[n], dB_const[n]);
      }
    }
  }

  // -- sums over sequences ---------------------------------------------------------------------------------------------

  // Adds the thread's sums of this unit to those of the block, one row of channels for each.
  __device__ void end_states(bool is_first_unit) {
    if (p.dinitial_state && at.owns(0)) {
#pragma unroll
      for (int n = 0; n < kStates; ++n)
        if (first_state + at.state(n) < p.states)
          p.dinitial_state[at.state_index(p, 0, first_state + at.state(n))] = q[n];
    }
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

// The work of one thread of the backward scan; scan_backward.cu says what it is.
#pragma once

#include "cuda/scan_sums.cuh"

namespace ssmvdm::cuda {

template <class T, class Map, bool kPlain, bool kAlongTime>
struct BackwardThread {
  static_assert(Map::kChannels == 1);
  using Sums = decltype(sums_for(Map{}));
  using One = float (&)[1];
  const BackwardParams& p;
  Place<Map> at;
  const DirectionParams& x;
  const GradDirectionParams& grad;
  const float* tile;
  float *chunk_states, *segment_states;  // this thread's column
  Exchange y_sums, dz_sums, u_sums, delta_sums;
  Sums sums;
  float decay[1][kStates], h[1][kStates], q[kStates], bias, D;
  float dA[kStates], dB_const[kStates], dC_const[kStates], dD, dbias;
  int first_state, turn;

  __device__ BackwardThread(const BackwardParams& p_, float* shared)
      : p(p_), at(p_), x(p_.dir[at.direction]), grad(p_.grad[at.direction]), tile(shared + at.direction * kTileFloats<Map>) {
    shared += p.directions * kTileFloats<Map>;
    sums.memory = shared;
    if (p.wants_states) shared += Sums::kFloats;
    const auto place = [&](float* memory, int64_t floats) {
      float* const own = memory ? memory + blockIdx.x * floats : shared;
      if (!memory) shared += floats;
      return own;
    };
    chunk_states = place(p.chunk_states, p.chunk_floats) + threadIdx.x;
    segment_states = (p.segment_states ? p.segment_states + blockIdx.x * p.segment_floats : nullptr) + threadIdx.x;
    float* exchange = p.exchange ? p.exchange + blockIdx.x * p.exchange_floats : shared;
    const auto column = [&](bool is_used, bool meets) {
      const Exchange own(exchange, at.threads, meets, at.direction, p.length, at.index);
      if (is_used) exchange += p.column_floats(at.threads, meets);
      return own;
    };
    y_sums = column(p.uses_y(), p.y_meets);
    dz_sums = column(p.uses_dz(), p.dz_meets);
    u_sums = column(p.uses_u(), p.u_meets);
    delta_sums = column(p.uses_delta(), p.delta_meets);
  }

  __device__ void begin_channel() {
    bias = x.bias ? x.bias[at.channel(0)] : 0.f;
    D = x.D ? x.D[at.channel(0)] : 0.f;
    dD = dbias = 0.f;
  }
  __device__ void begin_states(int first) {
    first_state = first, turn = turn_of(p, first);
    load_decay(p, at, x.A, first, decay);
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      const int state = first + at.state(n);
      const bool is_given = state < p.states;
      h[0][n] = p.initial_state && is_given ? p.initial_state[at.state_index(p, 0, state)] : 0.f;
      q[n] = p.dlast_state && is_given ? p.dlast_state[at.state_index(p, 0, state)] : 0.f;
      dA[n] = dB_const[n] = dC_const[n] = 0.f;
      if (!at.owns(0)) decay[0][n] = h[0][n] = q[n] = 0.f;  // sums over threads must not meet what is not there
    }
  }

  // h at the begin of a segment.
  __device__ void restore(int segment) {
#pragma unroll
    for (int n = 0; n < kStates; ++n) h[0][n] = segment_states[(segment * kStates + n) * int(blockDim.x)];
  }

  // -- A: the states ---------------------------------------------------------------------------------------------------

  // The steps [from, to) of the tile that begins with `begin`; h is kept at every `distance`-th step from `origin` on.
  __device__ void walk_states(int begin, int from, int to, float* kept, int origin, int distance, bool wants_outputs,
                              bool has_met) {
#pragma unroll 1
    for (int s = from; s < to;) {
      if ((s - origin) % distance == 0) {
#pragma unroll
        for (int n = 0; n < kStates; ++n) kept[((s - origin) / distance * kStates + n) * int(blockDim.x)] = h[0][n];
      }
      const float* bc = tile + (s - begin) * Map::kStepFloats;
      const bool is_chunk = s % kChunk == 0 && s + kChunk <= to && (!kAlongTime || p.vectors);
      if (is_chunk)
        states_of_steps<kChunk>(bc, s, wants_outputs, has_met);
      else
        states_of_steps<1>(bc, s, wants_outputs, has_met);
      s += is_chunk ? kChunk : 1;
    }
  }

  template <int kCount>
  __device__ void load_row(float (&values)[kCount], const Strided& tensor, int s) const {
    load_steps<T, kCount, kAlongTime>(values, element<const T>(tensor, at.row_offset(tensor, 0) + s * tensor.time),
                                      tensor.time);
    if (!at.owns(0)) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = 0.f;
    }
  }
  template <int kCount>
  __device__ void store_row(const float (&values)[kCount], const Strided& tensor, int s) const {
    if (at.owns(0))
      store_steps<T, kCount, kAlongTime>(values, element<T>(tensor, at.row_offset(tensor, 0) + s * tensor.time),
                                         tensor.time);
  }
  __device__ int time_of(int s) const { return x.reverse ? p.length - 1 - s : s; }

  template <int kCount>
  __device__ void states_of_steps(const float* bc, int s, bool wants_outputs, bool has_met) {
    float us[kCount], deltas[kCount], ys[kCount];
    load_row(us, x.u, s);
    load_row(deltas, x.delta, s);
    const ConstantStates<Map> constant(p, x, at, first_state);
#pragma unroll
    for (int i = 0; i < kCount; ++i, bc += Map::kStepFloats) {
      float dt = deltas[i] + bias;
      if (p.softplus) dt = softplus(dt);
      float du = dt * us[i];
      ys[i] = turn & 1 ? D * us[i] : 0.f;
      step<Map, kPlain>(h, decay, bc, at, constant, reinterpret_cast<One>(dt), reinterpret_cast<One>(du),
                        reinterpret_cast<One>(ys[i]));
      if (wants_outputs) y_sums.add(ys[i], time_of(s + i), 0, turn, has_met);
    }
    if (wants_outputs && y_sums.is_last(turn, has_met)) finish_outputs(ys, s, has_met);
  }

  // From complete sums y to dz, which a second direction with a dy of its own may have to complete, and to the outputs.
  template <int kCount>
  __device__ void finish_outputs(float (&ys)[kCount], int s, bool has_met) {
    constexpr int kBothTurns = 3;
    float zs[kCount], dys[kCount], dzs[kCount];
    if (x.z) {
      load_row(zs, x.z, s);
      load_row(dys, x.y, s);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      ys[i] *= p.scale;
      if (!x.z) continue;
      const float gate = sigmoid(zs[i]), silu = zs[i] * gate;
      dzs[i] = dys[i] * ys[i];
      dz_sums.add(dzs[i], time_of(s + i), 0, kBothTurns, has_met);
      dzs[i] *= fmaf(silu, 1.f - gate, gate);
      ys[i] *= silu;
    }
    if (grad.forward_y) store_row(ys, grad.forward_y, s);
    if (grad.dz && dz_sums.is_last(kBothTurns, has_met)) store_row(dzs, grad.dz, s);
  }

  // -- B: the adjoint --------------------------------------------------------------------------------------------------

  // The steps [from, to) of the tile that begins with `begin`, the last one first.
  __device__ void walk_adjoint(int begin, int from, int to, int origin, int64_t unit, bool has_met) {
#pragma unroll 1
    for (int chunk = (to - 1) / kChunk * kChunk; from < to && chunk > from - kChunk; chunk -= kChunk) {
      const float* kept = chunk_states + int64_t((chunk - origin) / kChunk) * kStates * int(blockDim.x);
      adjoint_of_chunk(tile + (chunk - begin) * Map::kStepFloats, kept, chunk, begin, from, to, unit, has_met);
    }
  }

  // A row of a chunk that may reach beyond the end.
  __device__ void load_chunk(float (&values)[kChunk], const Strided& tensor, int chunk) const {
    if (chunk + kChunk <= p.length && (!kAlongTime || p.vectors)) {
      load_row(values, tensor, chunk);
      return;
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const int s = chunk + i < p.length ? chunk + i : p.length - 1;
      load_row(reinterpret_cast<One>(values[i]), tensor, s);
    }
  }

  __device__ void adjoint_of_chunk(const float* bc, const float* kept, int chunk, int begin, int from, int to,
                                   int64_t unit, bool has_met) {
    float us[kChunk], dt[kChunk], slope[kChunk], g[kChunk], du[kChunk], ddelta[kChunk];
    float a[kChunk][kStates], before[kChunk + 1][kStates];  // before[i]: h before step i of the chunk
    const ConstantStates<Map> constant(p, x, at, first_state);
    load_chunk(us, x.u, chunk);
    load_chunk(dt, x.delta, chunk);
    load_chunk(g, x.y, chunk);
    if (x.z) {
      float zs[kChunk];
      load_chunk(zs, x.z, chunk);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) g[i] *= zs[i] * sigmoid(zs[i]);
    }
#pragma unroll
    for (int n = 0; n < kStates; ++n) before[0][n] = kept[n * int(blockDim.x)];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      g[i] *= p.scale;
      dt[i] += bias, slope[i] = 1.f;
      if (p.softplus) slope[i] = sigmoid(dt[i]), dt[i] = softplus(dt[i]);
      if (chunk + i < to) states_after(a[i], before[i], before[i + 1], bc + i * Map::kStepFloats, constant, dt[i], us[i]);
    }
#pragma unroll
    for (int i = kChunk - 1; i >= 0; --i) {
      if (chunk + i >= to || chunk + i < from) continue;
      float along_A = 0.f, along_B = 0.f, dB[kStates], dC[kStates];
      adjoint_of_step(a[i], before[i], before[i + 1], bc + i * Map::kStepFloats, constant, dt[i], us[i], g[i], along_A,
                      along_B, dB, dC);
      if (p.wants_states) {
        const int step = chunk + i;
        sums.add(p, at, step - begin, dB, dC,
                 state_sums_of<Map>(p, first_state / kStates, at.slice, at.direction, unit, step));
      }
      du[i] = dt[i] * along_B;
      if (turn & 1) du[i] = fmaf(D, g[i], du[i]), dD = fmaf(g[i], us[i], dD);
      ddelta[i] = fmaf(along_A, kLn2, us[i] * along_B) * slope[i];
      dbias += ddelta[i];
      u_sums.add(du[i], time_of(chunk + i), 0, turn, has_met);
      delta_sums.add(ddelta[i], time_of(chunk + i), 0, turn, has_met);
    }
    store_chunk(du, grad.du, chunk, from, to, u_sums.is_last(turn, has_met));
    store_chunk(ddelta, grad.ddelta, chunk, from, to, delta_sums.is_last(turn, has_met));
  }

  __device__ void store_chunk(const float (&values)[kChunk], const Strided& tensor, int chunk, int from, int to,
                              bool is_complete) const {
    if (!tensor || !is_complete) return;
    if (from <= chunk && chunk + kChunk <= to && (!kAlongTime || p.vectors)) {
      store_row(values, tensor, chunk);
      return;
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const float one[1] = {values[i]};
      if (from <= chunk + i && chunk + i < to) store_row(one, tensor, chunk + i);
    }
  }

  __device__ void states_after(float (&a)[kStates], const float (&before)[kStates], float (&after)[kStates],
                               const float* bc, const ConstantStates<Map>& constant, float dt, float u) const {
    const float du = dt * u;
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

  __device__ void adjoint_of_step(const float (&a)[kStates], const float (&before)[kStates],
                                  const float (&after)[kStates], const float* bc, const ConstantStates<Map>& constant,
                                  float dt, float u, float g, float& along_A, float& along_B, float (&dB)[kStates],
                                  float (&dC)[kStates]) {
    const float du = dt * u;
#pragma unroll
    for (int quarter = 0; quarter < kStates / 4; ++quarter) {
      float B[4], C[4];
      load_four(Map{}, bc, quarter, B, C);
      if (!kPlain) constant.load_four(at, quarter, B, C);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = 4 * quarter + j;
        if (!kPlain && !constant.has(at, n)) {
          dB[n] = dC[n] = 0.f;
          continue;
        }
        const float dh = fmaf(g, C[j], q[n]);
        along_B = fmaf(dh, B[j], along_B);
        dB[n] = dh * du;
        dC[n] = g * after[n];
        q[n] = a[n] * dh;
        const float d_product = q[n] * before[n];  // of delta A
        along_A = fmaf(d_product, decay[0][n], along_A);
        dA[n] = fmaf(d_product, dt, dA[n]);
        if (!kPlain) dB_const[n] += dB[n], dC_const[n] += dC[n];
      }
    }
  }

  // -- sums over sequences ---------------------------------------------------------------------------------------------

  // Adds the thread's sums of this unit to those of the block, one row of channels for each.
  __device__ void end_states(int64_t unit, bool is_first_unit) {
    if (p.dinitial_state && at.owns(0)) {
#pragma unroll
      for (int n = 0; n < kStates; ++n)
        if (first_state + at.state(n) < p.states)
          p.dinitial_state[at.state_index(p, 0, first_state + at.state(n))] = q[n];
    }
    const int64_t part = int64_t(blockIdx.x / unsigned(p.slices)) * p.directions + at.direction;
    float* const rows = p.parameter_sums + part * p.rows * p.channels + at.channel(0);
    add_states(rows, dA, is_first_unit);
    const int constants = p.states + 2;
    if (!kPlain && x.B_const) add_states(rows + constants * p.channels, dB_const, is_first_unit);
    if (!kPlain && x.C_const) add_states(rows + (constants + p.states) * p.channels, dC_const, is_first_unit);
    if (turn & 2) {
      add_one(rows + p.states * p.channels, dD, is_first_unit);
      add_one(rows + (p.states + 1) * p.channels, dbias, is_first_unit);
    }
  }

 private:
  __device__ void add_states(float* rows, const float (&values)[kStates], bool is_first_unit) const {
    if constexpr (Map::kUnit == 1) {
#pragma unroll
      for (int n = 0; n < kStates; ++n) add_row(rows, at.state(n), values[n], is_first_unit);
    } else {
      const float value = sum_lanes(values);
      if (threadIdx.x % 2 == 0) add_row(rows, int(threadIdx.x) % 32 / 2, value, is_first_unit);
    }
  }
  __device__ void add_row(float* rows, int n, float value, bool is_first_unit) const {
    if (first_state + n >= p.states || !at.owns_channel(0)) return;
    float* const sum = rows + (first_state + n) * p.channels;
    *sum = is_first_unit ? value : *sum + value;
  }
  __device__ void add_one(float* sum, float value, bool is_first_unit) const {
    if constexpr (Map::kUnit > 1) value = warp_sum(value);
    if (at.owns_channel(0) && (Map::kUnit == 1 || threadIdx.x % 32 == 0)) *sum = is_first_unit ? value : *sum + value;
  }
};

}  // namespace ssmvdm::cuda

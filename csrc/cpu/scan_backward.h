// Backward scan. For each pair of blocks and each direction: recompute h_t and a_t = 2^(delta A) into scratch memory,
// then walk the adjoint against time. With q_t = a_{t+1} dh_{t+1} carried,
//     dh_t = dy_t C_t + q_t,   d(delta u)_t = <dh_t, B_t>,   dB_t = dh_t delta_t u_t,   dC_t = dy_t h_t,
//     q_{t-1} = a_t dh_t,      d(delta A)_t = q_{t-1} h_{t-1}.
// Included inside an ISA namespace.

constexpr int64_t kNearBytes = 24 << 10;  // of scratch memory that stay in the first cache beside the tiles

struct BackwardWalk : ForwardWalk {
  const Scalar* dy;       // [blocks][length][W]
  Scalar *decay, *state;  // [blocks][kStates][W] of the first step; the initial state lies one step before
  int64_t scratch_step;   // to the next step, of either sign
  Scalar *dC, *dB;        // sums over channels, per time step
  int64_t dC_step, dB_step;
  Scalar *d_delta_A, *d_delta_u;  // [blocks][length][W], added to; the first is <q h, A log2 e>
  Scalar *dA, *q;                 // [blocks][padded][W]; q from last to initial state, null as h may be
  Stream ahead_of_adjoint;
  bool is_first;  // of its direction: what is added to is zero, whatever the tiles hold
};

template <class Access, int K, bool kAny>
NOINLINE static void walk_recompute(const BackwardWalk& w) {
  const Exp2Table table;
  const int64_t block = w.length * W, block_states = w.padded * W;
  Vec A[K][kStates], h[K][kStates];
  UNROLL
  for (int k = 0; k < K; ++k) UNROLL
  for (int n = 0; n < kStates; ++n) {
    A[k][n] = Vec::load(w.A + k * block_states + n * W);
    h[k][n] = w.h ? Vec::load(w.h + k * block_states + n * W) : Vec(Scalar(0));
    h[k][n].store(w.state + (k * kStates + n) * W - w.scratch_step);
  }
  const int64_t first = w.reverse ? w.length - 1 : 0, direction = w.reverse ? -1 : 1;
  const Scalar *delta = w.delta + first * W, *delta_u = w.delta_u + first * W, *dy = w.dy + first * W;
  const Scalar *B = w.B + first * w.B_step, *C = w.C + first * w.C_step;
  Scalar *y = w.y + first * W, *dC = w.dC + first * w.dC_step, *decay = w.decay, *state = w.state;
  Stream ahead = w.ahead;
  for (int64_t t = 0; t < w.length; ++t) {
    ahead.advance();
    Vec dt[K], du[K], g[K], sum[K], product[kStates];
    UNROLL
    for (int k = 0; k < K; ++k) {
      dt[k] = Vec::load(delta + k * block);
      du[k] = Vec::load(delta_u + k * block);
      g[k] = Vec::load(dy + k * block);
      sum[k] = Vec::load(y + k * block);
    }
    UNROLL
    for (int n = 0; n < kStates; ++n) {
      const Vec b = Access::get(B, n), c = Access::get(C, n);
      UNROLL
      for (int k = 0; k < K; ++k) {
        Vec a(Scalar(0));
        if (!kAny || n < w.states) {
          a = kAny ? exp2_any(dt[k], A[k][n], table) : exp2_near(dt[k], A[k][n], table);
          h[k][n] = fma(a, h[k][n], du[k] * b);
          sum[k] = fma(h[k][n], c, sum[k]);
        }
        a.store(decay + (k * kStates + n) * W);
        h[k][n].store(state + (k * kStates + n) * W);
        product[n] = k == 0 ? h[k][n] * g[k] : fma(h[k][n], g[k], product[n]);
      }
    }
    Access::accumulate(dC, product);
    UNROLL
    for (int k = 0; k < K; ++k) sum[k].store(y + k * block);
    delta += direction * W, delta_u += direction * W, dy += direction * W, y += direction * W;
    B += direction * w.B_step, C += direction * w.C_step, dC += direction * w.dC_step;
    decay += w.scratch_step, state += w.scratch_step;
  }
}

template <class Access, int K>
NOINLINE static void walk_adjoint(const BackwardWalk& w) {
  const int64_t block = w.length * W, block_states = w.padded * W;
  Vec q[K][kStates], dA[K][kStates];
  UNROLL
  for (int k = 0; k < K; ++k) UNROLL
  for (int n = 0; n < kStates; ++n) {
    q[k][n] = w.q ? Vec::load(w.q + k * block_states + n * W) : Vec(Scalar(0));
    dA[k][n] = Vec(Scalar(0));
  }
  const int64_t first = w.reverse ? 0 : w.length - 1, direction = w.reverse ? 1 : -1;  // against the scan
  const Scalar *delta = w.delta + first * W, *delta_u = w.delta_u + first * W, *dy = w.dy + first * W;
  const Scalar *B = w.B + first * w.B_step, *C = w.C + first * w.C_step;
  Scalar *dB = w.dB + first * w.dB_step, *d_delta_A = w.d_delta_A + first * W, *d_delta_u = w.d_delta_u + first * W;
  const Scalar* decay = w.decay + (w.length - 1) * w.scratch_step;
  const Scalar* previous = w.state + (w.length - 2) * w.scratch_step;
  Stream ahead = w.ahead_of_adjoint;
  for (int64_t t = 0; t < w.length; ++t) {
    ahead.advance();
    Vec dt[K], du[K], g[K], along_A[K], along_B[K], product[kStates];
    UNROLL
    for (int k = 0; k < K; ++k) {
      dt[k] = Vec::load(delta + k * block);
      du[k] = Vec::load(delta_u + k * block);
      g[k] = Vec::load(dy + k * block);
      along_A[k] = w.is_first ? Vec(Scalar(0)) : Vec::load(d_delta_A + k * block);
      along_B[k] = w.is_first ? Vec(Scalar(0)) : Vec::load(d_delta_u + k * block);
    }
    UNROLL
    for (int n = 0; n < kStates; ++n) {
      const Vec b = Access::get(B, n), c = Access::get(C, n);
      UNROLL
      for (int k = 0; k < K; ++k) {
        const Vec dh = fma(g[k], c, q[k][n]);
        along_B[k] = fma(dh, b, along_B[k]);
        product[n] = k == 0 ? dh * du[k] : fma(dh, du[k], product[n]);
        q[k][n] = dh * Vec::load(decay + (k * kStates + n) * W);
        const Vec qh = q[k][n] * Vec::load(previous + (k * kStates + n) * W);
        along_A[k] = fma(qh, Vec::load(w.A + k * block_states + n * W), along_A[k]);
        dA[k][n] = fma(qh, dt[k], dA[k][n]);
      }
    }
    Access::accumulate(dB, product);
    UNROLL
    for (int k = 0; k < K; ++k) {
      along_A[k].store(d_delta_A + k * block);
      along_B[k].store(d_delta_u + k * block);
    }
    delta += direction * W, delta_u += direction * W, dy += direction * W;
    d_delta_A += direction * W, d_delta_u += direction * W;
    B += direction * w.B_step, C += direction * w.C_step, dB += direction * w.dB_step;
    decay -= w.scratch_step, previous -= w.scratch_step;
  }
  UNROLL
  for (int k = 0; k < K; ++k) UNROLL
  for (int n = 0; n < kStates; ++n) {
    if (w.q) q[k][n].store(w.q + k * block_states + n * W);
    dA[k][n].store(w.dA + k * block_states + n * W);
  }
}

// Both exponentials keep to the same blocks: a NaN in one channel must not reorder the sums of dB over the others.
INLINE void walk_backward(const BackwardWalk& w, bool per_row, int64_t blocks, bool any) {
  using Walk = void (*)(const BackwardWalk&);
  static constexpr Walk recompute[2][2][2] = {{{walk_recompute<Shared, 1, false>, walk_recompute<Shared, 1, true>},
                                               {walk_recompute<Shared, 2, false>, walk_recompute<Shared, 2, true>}},
                                              {{walk_recompute<EachRow, 1, false>, walk_recompute<EachRow, 1, true>},
                                               {walk_recompute<EachRow, 2, false>, walk_recompute<EachRow, 2, true>}}};
  static constexpr Walk adjoint[2][2] = {{walk_adjoint<Shared, 1>, walk_adjoint<Shared, 2>},
                                         {walk_adjoint<EachRow, 1>, walk_adjoint<EachRow, 2>}};
  recompute[per_row][blocks - 1][any](w);
  adjoint[per_row][blocks - 1](w);
}

#include "scan_backward_sums.h"

struct BackwardTask {
  const ScanPlan& plan;
  const ScanBackwardArgs& args;
  const int64_t L;
  Scalar *delta, *delta_u, *slope, *dy, *gate, *y[kMaxDirections], *decay, *state, *d_delta_A, *d_delta_u, *h, *q, *dA;
  Scalar *du, *ddelta, *dz;  // of the first direction, where the second adds its own
  StateTile state_tile;
  ChannelSums channel_sums;
  SequenceSums sums;
  Inputs inputs;
  Rows du_rows[kMaxDirections], ddelta_rows[kMaxDirections], dz_rows, forward_rows[kMaxDirections];

  BackwardTask(Arena& tiles, Arena& own, const ScanPlan& p)
      : plan(p),
        args(static_cast<const ScanBackwardArgs&>(p.args)),
        L(p.length),
        state_tile(own, p),
        channel_sums(own, p),
        inputs(tiles, own, p, true) {
    const int64_t tile = 2 * L * W, states = 2 * p.padded * W, walked = 2 * kStates * W;
    for (Scalar** t : {&delta, &delta_u, &slope, &dy, &gate, &d_delta_A, &d_delta_u, &du, &ddelta, &dz, &y[0], &y[1]})
      *t = tiles.take(tile);
    h = args.initial_state ? tiles.take(states) : nullptr;
    q = args.dlast_state || args.dinitial_state ? tiles.take(states) : nullptr;
    dA = tiles.take(states);
    decay = tiles.take(L * walked);
    state = tiles.take((L + 1) * walked);
  }

  void begin(int64_t unit, int64_t next_unit) {
    inputs.begin(unit, next_unit);
    for (int d = 0; d < args.directions; ++d) {
      du_rows[d] = plan.rows_of(args.grad[d].du, unit);
      ddelta_rows[d] = plan.rows_of(args.grad[d].ddelta, unit);
      forward_rows[d] = plan.rows_of(args.forward_y[d], unit);
    }
    dz_rows = plan.rows_of(args.dz, unit);
  }
  void begin_segment(int64_t segment, bool new_group) {
    if (new_group) state_tile.load(plan, inputs.unit, plan.group_of_segment(segment));
    channel_sums.clear_segment();
  }
  void end_segment(int64_t segment) { channel_sums.end_segment(inputs.unit, segment); }

  void scan_blocks(int64_t block, int64_t count) {
    const int64_t unit = inputs.unit;
    inputs.turn(block, count);
    for (int d = 0; d < args.directions; ++d) {
      bool any = false;
      for (int64_t k = 0; k < count; ++k) {
        if (d == 0 || args.concatenate)
          split_gradient(args, inputs.get(kY + d, block + k, dy + k * L * W),
                         inputs.get(kZ, block + k, gate + k * L * W), dy + k * L * W, gate + k * L * W);
        any = prepare(d, block + k, k * L * W) || any;
        if (h) load_state(plan, args.initial_state, unit, block + k, h + k * plan.padded * W);
        if (q) load_state(plan, args.dlast_state, unit, block + k, q + k * plan.padded * W);
      }
      const int64_t at_once = count == 1 ? 1 : plan.at_once[d];
      for (int64_t k = 0; k < count; k += at_once) walk(d, block + k, k, at_once, any);
      for (int64_t k = 0; k < count; ++k) {
        if (args.dinitial_state) store_state(plan, args.dinitial_state, unit, block + k, q + k * plan.padded * W);
        finish_direction(d, block + k, k * L * W);
        plan.fold(sums.dA[d] + (block + k) * plan.padded * plan.sum_width(), dA + k * plan.padded * W, plan.padded);
      }
    }
    for (int64_t k = 0; k < count; ++k) finish(block + k, k * L * W);
  }

 private:
  void walk(int d, int64_t block, int64_t k, int64_t count, bool any) {
    const int64_t at = k * L * W, step = count * kStates * W;
    // The adjoint turns back: where steps have left the first cache they lie downwards, since reading upwards is what
    // a processor fetches ahead best.
    const bool down = !plan.per_row[d] && 2 * L * step * int64_t(sizeof(Scalar)) > kNearBytes;
    for (int64_t n = 0; n < plan.padded; n += kStates) {
      BackwardWalk w;
      w.delta = delta + at, w.delta_u = delta_u + at, w.y = y[d] + at, w.dy = dy + at;
      w.A = plan.A[d] + (block * plan.padded + n) * W;
      w.B = state_tile.at(plan, d, 0, block, n), w.C = state_tile.at(plan, d, 1, block, n);
      w.B_step = state_tile.step_of(plan, d, 0), w.C_step = state_tile.step_of(plan, d, 1);
      const int64_t of_states = (k * plan.padded + n) * W;
      w.h = h ? h + of_states : nullptr, w.q = q ? q + of_states : nullptr, w.dA = dA + of_states;
      w.length = L, w.padded = plan.padded, w.states = plan.states - n, w.reverse = args.dir[d].reverse;
      w.scratch_step = down ? -step : step;
      w.decay = decay + (down ? (L - 1) * step : 0), w.state = state + (down ? (L - 1) * step : step);
      w.is_first = n == 0;
      w.d_delta_A = d_delta_A + at, w.d_delta_u = d_delta_u + at;
      channel_sums.place(d, n, &w);
      w.ahead = inputs.take(), w.ahead_of_adjoint = inputs.take();
      walk_backward(w, plan.per_row[d], count, any);
    }
    channel_sums.fold_constants(d, block, sums);
  }

  bool prepare(int d, int64_t block, int64_t at) {
    const Window u = inputs.get_u(d, block), raw = inputs.get(kDelta + d, block, delta + at);
    const Vec bias = Vec::load(plan.bias[d] + block * W), D = Vec::load(plan.D[d] + block * W);
    const bool soft = args.delta_softplus;
    Vec largest(Scalar(0)), derivative(Scalar(1));
    if (soft) begin_softplus(raw, bias, L, delta + at, delta_u + at);
    for (int64_t t = 0; t < L; ++t) {
      const int64_t i = at + t * W;
      Vec x;
      if (soft) {
        const Vec biased = Vec::load(delta + i), e = Vec::load(delta_u + i);
        x = softplus_from(biased, e), derivative = sigmoid_from(biased, e);
      } else {
        x = raw.get(t) + bias;
      }
      const Vec input = u.get(t);
      largest = max_bits(largest, abs(x));
      x.store(delta + i);
      derivative.store(slope + i);
      (x * input).store(delta_u + i);
      (D * input).store(y[d] + i);
    }
    return plan.needs_any(d, block, largest);
  }

  void finish_direction(int d, int64_t block, int64_t at) {
    const Window u = inputs.get_u(d, block);
    const int64_t unit = inputs.unit;
    const bool both = args.directions == 2, share_u = both && args.shared.u, share_delta = both && args.shared.delta;
    const int du_of = share_u ? 0 : d, ddelta_of = share_delta ? 0 : d;
    const GradientSink du_sink(plan, args.grad[du_of].du, du_rows[du_of], unit, block, share_u, d, du + at,
                               d_delta_u + at),
        ddelta_sink(plan, args.grad[ddelta_of].ddelta, ddelta_rows[ddelta_of], unit, block, share_delta, d, ddelta + at,
                    slope + at);
    const Vec D = Vec::load(plan.D[d] + block * W);
    LongSum dD, dbias;
    for (int64_t t = 0; t < L; ++t) {
      const int64_t i = at + t * W;
      const Vec input = u.get(t), along_B = Vec::load(d_delta_u + i), g = Vec::load(dy + i);
      const Vec x = fma(Vec::load(d_delta_A + i), Vec(Scalar(kLn2)), along_B * input) * Vec::load(slope + i);
      ddelta_sink.set(t, x);
      du_sink.set(t, fma(along_B, Vec::load(delta + i), D * g));
      dbias.add(t, x);
      dD.add_product(t, input, g);
    }
    du_sink.store(), ddelta_sink.store();
    plan.fold(sums.dD[d] + block * plan.sum_width(), dD.total());
    plan.fold(sums.dbias[d] + block * plan.sum_width(), dbias.total());
    if (args.concatenate) put_dz(d, y[d] + at, nullptr, block, at);
  }

  // dz = gate sum, of both directions at once or, where each has its own output, one after the other.
  void put_dz(int d, const Scalar* sum, const Scalar* other, int64_t block, int64_t at) {
    if (!args.dz.data) return;
    const GradientSink sink(plan, args.dz, dz_rows, inputs.unit, block, args.concatenate && args.directions == 2, d,
                            dz + at, gate + at);
    for (int64_t i = 0, t = 0; t < L; i += W, ++t) {
      const Vec y = other ? Vec::load(sum + i) + Vec::load(other + i) : Vec::load(sum + i);
      sink.set(t, Vec::load(gate + at + i) * y);
    }
    sink.store();
  }

  void finish(int64_t block, int64_t at) {
    if (args.forward_y[0].data) {
      Scalar* const tiles[] = {y[0] + at, y[1] + at};
      store_outputs(plan, args, args.forward_y, forward_rows, inputs.unit, block, tiles,
                    inputs.get(kZ, block, delta + at), delta_u + at);
    }
    if (!args.concatenate) put_dz(0, y[0] + at, args.directions == 2 ? y[1] + at : nullptr, block, at);
  }
};

static void scan_backward(const ScanBackwardArgs& args, ParallelFor run) {
  const ScanPlan plan(args, least_partials(args));
  SequenceSumsStorage sums(plan);
  SegmentSums segments(plan);
  parallel(run, plan.tasks(), [&](int64_t begin, int64_t end) {
    const Tasks<BackwardTask> tasks(plan);
    for (BackwardTask* task : tasks.all) task->channel_sums.attach(&segments);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t partial = i / plan.splits;
      for (BackwardTask* task : tasks.all) task->sums = sums.of_partial(partial);
      run_units(tasks.all, plan, plan.first_unit(partial), plan.first_unit(partial + 1), i % plan.splits);
    }
  });
  segments.finish(run);
  sums.finish(args);
}

// Forward scan. Included inside an ISA namespace; plan.h says how the call is divided.

struct ForwardWalk {              // `blocks` blocks and kStates states through all time steps
  const Scalar *delta, *delta_u;  // [blocks][length][W]
  Scalar* y;                      // [blocks][length][W], added to
  const Scalar* A;                // [blocks][padded][W], times log2 e
  const Scalar *B, *C;
  int64_t B_step, C_step;
  Scalar* h;  // [blocks][padded][W], first to last state; null where it begins at zero and nobody asks for the last
  int64_t length, padded;
  int64_t states;  // those of kStates that are not padding, which inf * 0 must not wake
  bool reverse;
  Stream ahead;
};

template <class Access, int K, bool kAny>
NOINLINE static void walk_forward(const ForwardWalk& w) {
  const Exp2Table table;
  const int64_t block = w.length * W, block_states = w.padded * W;
  Vec A[K][kStates], h[K][kStates];
  UNROLL
  for (int k = 0; k < K; ++k) UNROLL
  for (int n = 0; n < kStates; ++n) {
    A[k][n] = Vec::load(w.A + k * block_states + n * W);
    h[k][n] = w.h ? Vec::load(w.h + k * block_states + n * W) : Vec(Scalar(0));
  }
  const int64_t first = w.reverse ? w.length - 1 : 0, direction = w.reverse ? -1 : 1;
  const Scalar *delta = w.delta + first * W, *delta_u = w.delta_u + first * W;
  const Scalar *B = w.B + first * w.B_step, *C = w.C + first * w.C_step;
  Scalar* y = w.y + first * W;
  Stream ahead = w.ahead;
  for (int64_t t = 0; t < w.length; ++t) {
    ahead.advance();
    Vec dt[K], du[K], sum[K];
    UNROLL
    for (int k = 0; k < K; ++k) {
      dt[k] = Vec::load(delta + k * block);
      du[k] = Vec::load(delta_u + k * block);
      sum[k] = Vec::load(y + k * block);
    }
    UNROLL
    for (int n = 0; n < kStates; ++n) {
      if (kAny && n >= w.states) break;
      const Vec b = Access::get(B, n), c = Access::get(C, n);
      UNROLL
      for (int k = 0; k < K; ++k) {
        const Vec a = kAny ? exp2_any(dt[k], A[k][n], table) : exp2_near(dt[k], A[k][n], table);
        h[k][n] = fma(a, h[k][n], du[k] * b);
        sum[k] = fma(h[k][n], c, sum[k]);
      }
    }
    UNROLL
    for (int k = 0; k < K; ++k) sum[k].store(y + k * block);
    delta += direction * W, delta_u += direction * W, y += direction * W;
    B += direction * w.B_step, C += direction * w.C_step;
  }
  if (!w.h) return;
  UNROLL
  for (int k = 0; k < K; ++k) UNROLL
  for (int n = 0; n < kStates; ++n) h[k][n].store(w.h + k * block_states + n * W);
}

INLINE void walk_forward(const ForwardWalk& w, bool per_row, int64_t blocks, bool any) {
  using Walk = void (*)(const ForwardWalk&);
  static constexpr Walk walks[2][2][2] = {{{walk_forward<Shared, 1, false>, walk_forward<Shared, 1, true>},
                                           {walk_forward<Shared, 2, false>, walk_forward<Shared, 2, true>}},
                                          {{walk_forward<EachRow, 1, false>, walk_forward<EachRow, 1, true>},
                                           {walk_forward<EachRow, 2, false>, walk_forward<EachRow, 2, true>}}};
  walks[per_row][blocks - 1][any](w);
}

struct ForwardTask {
  const ScanPlan& plan;
  const ScanArgs& args;
  const int64_t L;
  Scalar *delta, *delta_u, *y[kMaxDirections], *h;
  StateTile state_tile;
  Inputs inputs;

  ForwardTask(Arena& tiles, Arena& own, const ScanPlan& p)
      : plan(p),
        args(p.args),
        L(p.length),
        delta(tiles.take(2 * L * W)),
        delta_u(tiles.take(2 * L * W)),
        y{tiles.take(2 * L * W), tiles.take(2 * L * W)},
        h(p.args.initial_state || p.args.last_state ? tiles.take(2 * p.padded * W) : nullptr),
        state_tile(own, p),
        inputs(tiles, own, p, false) {}

  void begin(int64_t unit, int64_t next_unit) { inputs.begin(unit, next_unit); }
  void begin_segment(int64_t segment, bool new_group) {
    if (new_group) state_tile.load(plan, inputs.unit, plan.group_of_segment(segment));
  }
  void end_segment(int64_t) {}

  void scan_blocks(int64_t block, int64_t count) {
    const int64_t unit = inputs.unit;
    inputs.turn(block, count);
    for (int d = 0; d < args.directions; ++d) {
      bool any = false;
      for (int64_t k = 0; k < count; ++k) {
        any = prepare(d, block + k, delta + k * L * W, delta_u + k * L * W, y[d] + k * L * W) || any;
        if (h) load_state(plan, args.initial_state, unit, block + k, h + k * plan.padded * W);
      }
      const int64_t at_once = count == 1 ? 1 : plan.at_once[d];
      for (int64_t k = 0; k < count; k += at_once) walk(d, block + k, k, at_once, any);
      if (args.last_state)
        for (int64_t k = 0; k < count; ++k)
          store_state(plan, args.last_state, unit, block + k, h + k * plan.padded * W);
    }
    for (int64_t k = 0; k < count; ++k) {
      Scalar* const tiles[] = {y[0] + k * L * W, y[1] + k * L * W};
      store_outputs(plan, args, args.y, inputs.rows.of + kY, unit, block + k, tiles,
                    inputs.get(kZ, block + k, delta + k * L * W), delta_u + k * L * W);
    }
  }

 private:
  void walk(int d, int64_t block, int64_t k, int64_t count, bool any) {
    for (int64_t n = 0; n < plan.padded; n += kStates) {
      const ForwardWalk w{delta + k * L * W,
                          delta_u + k * L * W,
                          y[d] + k * L * W,
                          plan.A[d] + (block * plan.padded + n) * W,
                          state_tile.at(plan, d, 0, block, n),
                          state_tile.at(plan, d, 1, block, n),
                          state_tile.step_of(plan, d, 0),
                          state_tile.step_of(plan, d, 1),
                          h ? h + (k * plan.padded + n) * W : nullptr,
                          L,
                          plan.padded,
                          plan.states - n,
                          args.dir[d].reverse,
                          inputs.take()};
      walk_forward(w, plan.per_row[d], count, any);
    }
  }

  // delta after bias and softplus, delta u, and y = D u; says whether the slow exponential is needed.
  bool prepare(int d, int64_t block, Scalar* dt, Scalar* du, Scalar* sum) {
    const Window u = inputs.get_u(d, block), raw = inputs.get(kDelta + d, block, dt);
    const Vec bias = Vec::load(plan.bias[d] + block * W), D = Vec::load(plan.D[d] + block * W);
    const bool soft = args.delta_softplus;
    Vec largest(Scalar(0));
    if (soft) begin_softplus(raw, bias, L, dt, du);
    for (int64_t t = 0; t < L; ++t) {
      const Vec x = soft ? softplus_from(Vec::load(dt + t * W), Vec::load(du + t * W)) : raw.get(t) + bias;
      const Vec input = u.get(t);
      largest = max_bits(largest, abs(x));
      x.store(dt + t * W);
      (x * input).store(du + t * W);
      (D * input).store(sum + t * W);
    }
    return plan.needs_any(d, block, largest);
  }
};

static void scan_forward(const ScanArgs& args, ParallelFor run) {
  const ScanPlan plan(args);
  parallel(run, plan.tasks(), [&](int64_t begin, int64_t end) {
    const Tasks<ForwardTask> tasks(plan);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t partial = i / plan.splits;
      run_units(tasks.all, plan, plan.first_unit(partial), plan.first_unit(partial + 1), i % plan.splits);
    }
  });
}

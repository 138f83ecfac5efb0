// S4D: a recurrence with complex diagonal coefficients that are constant in time,
//     h_t = decay h_{t-1} + u_t,   y_t = 2 Re sum_n weight_n h_{n,t} + D u_t.
// Six fused multiply-adds per element and mode, no exponential, no transform; or, where that is less work, directly as
// the convolution that this is (s4d_direct.h). Coefficients lie packed as [blocks][modes][re, im][W]; the 2 is in the
// packed weight. Included inside an ISA namespace; plan.h says how the call is divided.

constexpr int64_t kForwardModes = 4, kBackwardModes = 2;  // walked at once

INLINE bool is_direct(const S4dArgs& a) { return a.length + 8 <= 12 * a.modes; }
INLINE int64_t s4d_sums(const S4dArgs& a) { return 1 + a.directions * (is_direct(a) ? a.length : 4 * a.modes); }

struct S4dPlan : Plan {
  const S4dArgs& args;
  const bool direct;
  Memory parameters;
  Scalar *decay[kMaxDirections], *weight[kMaxDirections], *taps[kMaxDirections], *D[kMaxDirections];

  explicit S4dPlan(const S4dArgs& a)
      : Plan(a.batch, a.channels, a.length, a.lanes, 1, a.dir[0].u, 1, s4d_sums(a)),
        args(a),
        direct(is_direct(a)),
        parameters(parameter_bytes(), false) {
    Arena arena(parameters.base);
    take_parameters(arena);
    for (int d = 0; d < a.directions; ++d) {
      pack(a.dir[d].D, 1, 1, 1, D[d]);
      if (direct) {
        fill_taps(*this, a, d, taps[d]);
        continue;
      }
      pack(a.dir[d].decay, 2 * a.modes, 2 * a.modes, 1, decay[d]);
      pack(a.dir[d].weight, 2 * a.modes, 2 * a.modes, 2, weight[d]);
    }
  }
  int64_t at_mode(int64_t block, int64_t mode) const { return (block * args.modes + mode) * 2 * W; }

 private:
  void take_parameters(Arena& arena) {
    for (int d = 0; d < args.directions; ++d) {
      decay[d] = arena.take(direct ? 0 : blocks * args.modes * 2 * W);
      weight[d] = arena.take(direct ? 0 : blocks * args.modes * 2 * W);
      taps[d] = arena.take(direct ? blocks * args.length * sum_width() : 0);
      D[d] = arena.take(blocks * W);
    }
  }
  int64_t parameter_bytes() {
    Arena arena(nullptr);
    take_parameters(arena);
    return arena.used;
  }
};

struct S4dWalk {  // a few modes through all time steps
  const Scalar* u;
  int64_t u_stride;
  Scalar* y;                     // [length][W], added to
  const Scalar *decay, *weight;  // [modes][re, im][W]
  int64_t length;
  bool reverse;
};

template <int M>
NOINLINE static void walk_s4d(const S4dWalk& w) {
  Vec h_re[M], h_im[M];
  UNROLL
  for (int n = 0; n < M; ++n) h_re[n] = h_im[n] = Vec(Scalar(0));
  const int64_t first = w.reverse ? w.length - 1 : 0, direction = w.reverse ? -1 : 1;
  const Scalar* u = w.u + first * w.u_stride;
  Scalar* y = w.y + first * W;
  for (int64_t t = 0; t < w.length; ++t, u += direction * w.u_stride, y += direction * W) {
    const Vec input = Vec::load(u);
    Vec sum = Vec::load(y);  // added to in the order of the modes, however many are walked at once
    UNROLL
    for (int n = 0; n < M; ++n) {
      const Vec a_re = Vec::load(w.decay + 2 * n * W), a_im = Vec::load(w.decay + (2 * n + 1) * W);
      const Vec re = fnma(a_im, h_im[n], fma(a_re, h_re[n], input));
      h_im[n] = fma(a_re, h_im[n], a_im * h_re[n]);
      h_re[n] = re;
      sum = fma(re, Vec::load(w.weight + 2 * n * W), sum);
      sum = fnma(h_im[n], Vec::load(w.weight + (2 * n + 1) * W), sum);
    }
    sum.store(y);
  }
}

struct S4dForwardTask {
  const S4dPlan& plan;
  const S4dArgs& args;
  const int64_t L;
  Scalar *y[kMaxDirections], *scratch;
  Rows u_rows[kMaxDirections], y_rows[kMaxDirections], z_rows;

  S4dForwardTask(Arena& arena, const S4dPlan& p)
      : plan(p), args(p.args), L(p.length), y{arena.take(L * W), arena.take(L * W)}, scratch(arena.take(2 * L * W)) {}

  void run(int64_t unit, int64_t first_segment, int64_t last_segment) {
    for (int d = 0; d < args.directions; ++d) {
      u_rows[d] = plan.rows_of(args.dir[d].u, unit);
      y_rows[d] = plan.rows_of(args.y[d], unit);
    }
    z_rows = plan.rows_of(args.z, unit);
    for (int64_t b = plan.first_block(first_segment), end = plan.last_block(last_segment - 1); b < end; ++b) {
      for (int d = 0; d < args.directions; ++d) scan(d, unit, b);
      const Window z = load_block(args.z, z_rows, plan, unit, b, scratch);
      store_outputs(plan, args, args.y, y_rows, unit, b, y, z, scratch + L * W);
    }
  }

 private:
  void scan(int d, int64_t unit, int64_t block) {
    using Walk = void (*)(const S4dWalk&);
    static constexpr Walk walks[] = {walk_s4d<1>, walk_s4d<2>, walk_s4d<3>, walk_s4d<4>};
    const Window u = load_scalars(args.dir[d].u, u_rows[d], plan, unit, block, scratch);
    const Vec D = Vec::load(plan.D[d] + block * W);
    for (int64_t t = 0; t < L; ++t) (D * u.get(t)).store(y[d] + t * W);
    const bool reverse = args.dir[d].reverse;
    if (plan.direct) {
      convolve_block(plan, plan.taps[d], block, L, in_time(u.scalars(), u.scalar_stride(), L, reverse),
                     in_time(y[d], W, L, reverse));
      return;
    }
    for (int64_t n = 0; n < args.modes; n += kForwardModes) {
      const int64_t left = args.modes - n, at = plan.at_mode(block, n);
      const S4dWalk w{u.scalars(), u.scalar_stride(), y[d], plan.decay[d] + at, plan.weight[d] + at, L, reverse};
      walks[(left < kForwardModes ? left : kForwardModes) - 1](w);
    }
  }
};

static void s4d_forward(const S4dArgs& args, ParallelFor run) {
  const S4dPlan plan(args);
  Arena measure(nullptr);
  const S4dForwardTask measured(measure, plan);
  parallel(run, plan.tasks(), [&](int64_t begin, int64_t end) {
    Memory memory(measure.used, false);
    Arena arena(memory.base);
    S4dForwardTask task(arena, plan);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t partial = i / plan.splits, split = i % plan.splits;
      for (int64_t unit = plan.first_unit(partial); unit < plan.first_unit(partial + 1); ++unit)
        task.run(unit, plan.first_segment(split), plan.first_segment(split + 1));
    }
  });
}

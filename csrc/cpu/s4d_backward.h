// Backward of S4D. A pair of modes at a time: h is computed again and kept, with the sums for dweight; then the adjoint
// walks against time. With g = dy before scale and gate, and bars for complex conjugates,
//     dh_t = 2 g_t conj(weight) + conj(decay) dh_{t+1},   du_t = sum_n Re dh_t + D g_t,
//     dweight = sum_t 2 g_t conj(h_t),                     ddecay = sum_t dh_t conj(h_{t-1}).
// Included inside an ISA namespace.

struct S4dBackwardWalk : S4dWalk {
  const Scalar* dy;          // [length][W]
  Scalar* state;             // [1 + length][M][re, im][W] in walking order, starting before the first step
  Scalar* du;                // [length][W], added to
  Scalar *ddecay, *dweight;  // [M][re, im][W], added to
};

// Sums over time are taken in runs, as `LongSum`: adds those of a run to their totals and begins the next.
template <int M>
INLINE void end_run(Vec (&re)[M], Vec (&im)[M], Scalar* total) {
  UNROLL
  for (int n = 0; n < M; ++n) {
    (Vec::load(total + 2 * n * W) + re[n]).store(total + 2 * n * W);
    (Vec::load(total + (2 * n + 1) * W) + im[n]).store(total + (2 * n + 1) * W);
    re[n] = im[n] = Vec(Scalar(0));
  }
}

template <int M>
NOINLINE static void walk_s4d_again(const S4dBackwardWalk& w) {
  Vec h_re[M], h_im[M], dc_re[M], dc_im[M];
  UNROLL
  for (int n = 0; n < M; ++n) {
    h_re[n] = h_im[n] = dc_re[n] = dc_im[n] = Vec(Scalar(0));
    h_re[n].store(w.state + 2 * n * W);
    h_im[n].store(w.state + (2 * n + 1) * W);
  }
  const int64_t first = w.reverse ? w.length - 1 : 0, direction = w.reverse ? -1 : 1;
  const Scalar *u = w.u + first * w.u_stride, *dy = w.dy + first * W;
  Scalar *y = w.y + first * W, *state = w.state + 2 * M * W;
  for (int64_t t = 0; t < w.length; ++t, state += 2 * M * W) {
    if (t % LongSum::kRun == 0) end_run(dc_re, dc_im, w.dweight);
    const Vec input = Vec::load(u), g = Vec::load(dy) + Vec::load(dy);
    Vec sum = Vec::load(y);
    UNROLL
    for (int n = 0; n < M; ++n) {
      const Vec a_re = Vec::load(w.decay + 2 * n * W), a_im = Vec::load(w.decay + (2 * n + 1) * W);
      const Vec re = fnma(a_im, h_im[n], fma(a_re, h_re[n], input));
      h_im[n] = fma(a_re, h_im[n], a_im * h_re[n]);
      h_re[n] = re;
      h_re[n].store(state + 2 * n * W);
      h_im[n].store(state + (2 * n + 1) * W);
      sum = fma(re, Vec::load(w.weight + 2 * n * W), sum);
      sum = fnma(h_im[n], Vec::load(w.weight + (2 * n + 1) * W), sum);
      dc_re[n] = fma(g, re, dc_re[n]);
      dc_im[n] = fnma(g, h_im[n], dc_im[n]);
    }
    sum.store(y);
    u += direction * w.u_stride, dy += direction * W, y += direction * W;
  }
  end_run(dc_re, dc_im, w.dweight);
}

template <int M>
NOINLINE static void walk_s4d_adjoint(const S4dBackwardWalk& w) {
  Vec q_re[M], q_im[M], da_re[M], da_im[M];
  UNROLL
  for (int n = 0; n < M; ++n) q_re[n] = q_im[n] = da_re[n] = da_im[n] = Vec(Scalar(0));
  const int64_t first = w.reverse ? 0 : w.length - 1, direction = w.reverse ? 1 : -1;  // against the scan
  const Scalar *dy = w.dy + first * W, *state = w.state + (w.length - 1) * 2 * M * W;
  Scalar* du = w.du + first * W;
  for (int64_t t = 0; t < w.length; ++t, state -= 2 * M * W) {
    if (t % LongSum::kRun == 0) end_run(da_re, da_im, w.ddecay);
    const Vec g = Vec::load(dy);
    Vec sum = Vec::load(du);
    UNROLL
    for (int n = 0; n < M; ++n) {
      const Vec a_re = Vec::load(w.decay + 2 * n * W), a_im = Vec::load(w.decay + (2 * n + 1) * W);
      const Vec c_re = Vec::load(w.weight + 2 * n * W), c_im = Vec::load(w.weight + (2 * n + 1) * W);
      const Vec re = fma(a_im, q_im[n], fma(a_re, q_re[n], g * c_re));
      q_im[n] = fnma(a_im, q_re[n], fnma(g, c_im, a_re * q_im[n]));
      q_re[n] = re;
      sum = sum + re;
      const Vec p_re = Vec::load(state + 2 * n * W), p_im = Vec::load(state + (2 * n + 1) * W);
      da_re[n] = fma(q_re[n], p_re, fma(q_im[n], p_im, da_re[n]));
      da_im[n] = fma(q_im[n], p_re, fnma(q_re[n], p_im, da_im[n]));
    }
    sum.store(du);
    dy += direction * W, du += direction * W;
  }
  end_run(da_re, da_im, w.ddecay);
}

struct S4dSums {  // over sequences, of one partial: [blocks][modes][re, im][W or 1], [blocks][length][W or 1],
                  // [blocks][..]
  Scalar *ddecay[kMaxDirections], *dweight[kMaxDirections], *dtaps[kMaxDirections], *dD[kMaxDirections];
  int64_t bytes;

  S4dSums(const S4dPlan& plan, char* base) {
    Arena arena(base);
    const int64_t width = plan.sum_width(), modes = plan.args.modes;
    for (int d = 0; d < plan.args.directions; ++d) {
      ddecay[d] = arena.take(plan.direct ? 0 : plan.blocks * modes * 2 * width);
      dweight[d] = arena.take(plan.direct ? 0 : plan.blocks * modes * 2 * width);
      dtaps[d] = arena.take(plan.direct ? plan.blocks * plan.length * width : 0);
      dD[d] = arena.take(plan.blocks * width);
    }
    bytes = arena.used;
  }
};

struct S4dBackwardTask {
  const S4dPlan& plan;
  const S4dBackwardArgs& args;
  const int64_t L;
  Scalar *dy, *gate, *y[kMaxDirections], *du[kMaxDirections], *dz, *scratch, *state, *sums_of_modes;
  Rows u_rows[kMaxDirections], y_rows[kMaxDirections], z_rows, du_rows[kMaxDirections], dz_rows,
      forward_rows[kMaxDirections];

  S4dBackwardTask(Arena& arena, const S4dPlan& p)
      : plan(p), args(static_cast<const S4dBackwardArgs&>(p.args)), L(p.length) {
    for (Scalar** t : {&dy, &gate, &y[0], &y[1], &du[0], &du[1], &dz}) *t = arena.take(L * W);
    scratch = arena.take(2 * L * W);
    state = arena.take((L + 1) * kBackwardModes * 2 * W);
    sums_of_modes = arena.take(2 * kBackwardModes * 2 * W);
  }

  void run(int64_t unit, int64_t first_segment, int64_t last_segment, const S4dSums& sums) {
    for (int d = 0; d < args.directions; ++d) {
      u_rows[d] = plan.rows_of(args.dir[d].u, unit);
      y_rows[d] = plan.rows_of(args.y[d], unit);
      du_rows[d] = plan.rows_of(args.grad[d].du, unit);
      forward_rows[d] = plan.rows_of(args.forward_y[d], unit);
    }
    z_rows = plan.rows_of(args.z, unit), dz_rows = plan.rows_of(args.dz, unit);
    for (int64_t b = plan.first_block(first_segment), end = plan.last_block(last_segment - 1); b < end; ++b) {
      for (int d = 0; d < args.directions; ++d) {
        if (d == 0 || args.concatenate)
          split_gradient(args, load_block(args.y[d], y_rows[d], plan, unit, b, scratch),
                         load_block(args.z, z_rows, plan, unit, b, scratch + L * W), dy, gate);
        scan(d, unit, b, sums);
        if (args.concatenate) add_dz(d > 0, y[d]);
      }
      finish(unit, b);
    }
  }

 private:
  void scan(int d, int64_t unit, int64_t block, const S4dSums& sums) {
    using Walk = void (*)(const S4dBackwardWalk&);
    static constexpr Walk again[] = {walk_s4d_again<1>, walk_s4d_again<2>},
                          adjoint[] = {walk_s4d_adjoint<1>, walk_s4d_adjoint<2>};
    const Window u = load_scalars(args.dir[d].u, u_rows[d], plan, unit, block, scratch);
    const Vec D = Vec::load(plan.D[d] + block * W);
    LongSum dD;
    for (int64_t t = 0; t < L; ++t) {
      const Vec input = u.get(t), g = Vec::load(dy + t * W);
      (D * input).store(y[d] + t * W);
      (D * g).store(du[d] + t * W);
      dD.add_product(t, input, g);
    }
    plan.fold(sums.dD[d] + block * plan.sum_width(), dD.total());
    if (plan.direct) return direct(d, block, u, sums);
    for (int64_t n = 0; n < args.modes; n += kBackwardModes) {
      const int64_t left = args.modes - n, count = left < kBackwardModes ? left : kBackwardModes;
      S4dBackwardWalk w;
      w.u = u.scalars(), w.u_stride = u.scalar_stride(), w.y = y[d], w.length = L, w.reverse = args.dir[d].reverse;
      w.decay = plan.decay[d] + plan.at_mode(block, n), w.weight = plan.weight[d] + plan.at_mode(block, n);
      w.dy = dy, w.state = state, w.du = du[d];
      w.ddecay = sums_of_modes, w.dweight = sums_of_modes + kBackwardModes * 2 * W;
      memset(sums_of_modes, 0, size_t(2 * kBackwardModes * 2 * W) * sizeof(Scalar));
      again[count - 1](w);
      adjoint[count - 1](w);
      const int64_t at = (block * args.modes + n) * 2 * plan.sum_width();
      plan.fold(sums.ddecay[d] + at, w.ddecay, 2 * count);
      plan.fold(sums.dweight[d] + at, w.dweight, 2 * count);
    }
  }

  void direct(int d, int64_t block, Window u, const S4dSums& sums) {
    const bool reverse = args.dir[d].reverse;
    const TimeSeries input = in_time(u.scalars(), u.scalar_stride(), L, reverse), g = in_time(dy, W, L, reverse);
    if (args.dz.data || args.forward_y[0].data)
      convolve_block(plan, plan.taps[d], block, L, input, in_time(y[d], W, L, reverse));
    convolve_block(plan, plan.taps[d], block, L, in_time(dy, W, L, !reverse), in_time(du[d], W, L, !reverse));
    correlate(g, input, L, state);
    plan.fold(sums.dtaps[d] + block * L * plan.sum_width(), state, L);
  }

  void add_dz(bool add, const Scalar* sum) {
    if (!args.dz.data) return;
    for (int64_t i = 0; i < L * W; i += W) {
      const Vec x = Vec::load(gate + i) * Vec::load(sum + i);
      (add ? Vec::load(dz + i) + x : x).store(dz + i);
    }
  }

  void finish(int64_t unit, int64_t block) {
    const bool both = args.directions == 2;
    if (args.forward_y[0].data)
      store_outputs(plan, args, args.forward_y, forward_rows, unit, block, y,
                    load_block(args.z, z_rows, plan, unit, block, scratch), scratch + L * W);
    if (args.dz.data && !args.concatenate) {
      if (both)
        for (int64_t i = 0; i < L * W; i += W) (Vec::load(y[0] + i) + Vec::load(y[1] + i)).store(y[0] + i);
      add_dz(false, y[0]);
    }
    store_gradient(dz, nullptr, args.dz, dz_rows, plan, unit, block);
    for (int d = 0; d < args.directions; ++d)
      store_gradient(du[d], both && args.shared.u ? du[1] : nullptr, args.grad[d].du, du_rows[d], plan, unit, block);
  }
};

// ddecay and dweight from the sums for the taps.
static void put_s4d_taps(const S4dPlan& plan, const S4dSums& sums, int64_t stride, ParallelFor run) {
  const S4dBackwardArgs& args = static_cast<const S4dBackwardArgs&>(plan.args);
  const int64_t L = plan.length, groups = (plan.channels + W - 1) / W;
  Memory memory(plan.channels * L * int64_t(sizeof(Scalar)), false);
  for (int d = 0; d < args.directions; ++d) {
    const bool add_decay = d == 1 && args.shared.decay, add_weight = d == 1 && args.shared.weight;
    void *ddecay = args.grad[add_decay ? 0 : d].ddecay, *dweight = args.grad[add_weight ? 0 : d].dweight;
    if (!ddecay && !dweight) continue;
    plan.unfold(sums.dtaps[d], stride, L, L, nullptr, memory.data());
    parallel(run, groups, [&](int64_t begin, int64_t end) {
      Memory tile(L * W * int64_t(sizeof(Scalar)), true);
      for (int64_t first = begin * W; first < end * W && first < plan.channels; first += W) {
        for (int64_t i = 0; i < W && first + i < plan.channels; ++i)
          for (int64_t l = 0; l < L; ++l) tile.data()[l * W + i] = memory.data()[(first + i) * L + l];
        Coefficients{args, d, first}.gradients(tile.data(), ddecay, dweight, add_decay, add_weight);
      }
    });
  }
}

static void s4d_backward(const S4dBackwardArgs& args, ParallelFor run) {
  const S4dPlan plan(args);
  Arena measure(nullptr);
  S4dBackwardTask measured(measure, plan);
  const int64_t bytes = S4dSums(plan, nullptr).bytes, stride = bytes / int64_t(sizeof(Scalar)), modes = args.modes;
  Memory sums(bytes * plan.partials, true);
  parallel(run, plan.tasks(), [&](int64_t begin, int64_t end) {
    Memory memory(measure.used, false);
    Arena arena(memory.base);
    S4dBackwardTask task(arena, plan);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t partial = i / plan.splits, split = i % plan.splits;
      const S4dSums mine(plan, sums.base + partial * bytes);
      for (int64_t unit = plan.first_unit(partial); unit < plan.first_unit(partial + 1); ++unit)
        task.run(unit, plan.first_segment(split), plan.first_segment(split + 1), mine);
    }
  });
  const S4dSums first(plan, sums.base);
  const auto &g0 = args.grad[0], &g1 = args.grad[1];
  const auto put = [&](Scalar* const* of, int64_t width, void* out0, void* out1, bool shared) {
    plan.unfold_directions(of, args.directions, stride, width, width, shared, out0, out1);
  };
  put(first.dD, 1, g0.dD, g1.dD, args.shared.D);
  if (plan.direct) return put_s4d_taps(plan, first, stride, run);
  put(first.ddecay, 2 * modes, g0.ddecay, g1.ddecay, args.shared.decay);
  put(first.dweight, 2 * modes, g0.dweight, g1.dweight, args.shared.weight);
}

// Depthwise convolution in both directions over one read of x. Direction 0: y_t = act(bias + sum_k weight_k
// x_{t-(K-1)+k}); direction 1 mirrors it in time. The backward pass recomputes the pre-activation. Included inside an
// ISA namespace.

struct ConvPlan : Plan {
  const ConvArgs& args;
  int64_t width;
  Memory parameters;
  Scalar *weight[kMaxDirections], *bias[kMaxDirections];  // [blocks][width][W], [blocks][W]

  explicit ConvPlan(const ConvArgs& a)
      : Plan(a.batch, a.channels, a.length, a.lanes, 1, a.x), args(a), width(a.width), parameters(bytes(), false) {
    Arena arena(parameters.base);
    for (int d = a.first_direction; d <= a.last_direction; ++d) {
      weight[d] = arena.take(blocks * width * W);
      bias[d] = arena.take(blocks * W);
      pack(a.weight[d], width, width, 1, weight[d]);
      pack(a.bias[d], 1, 1, 1, bias[d]);
    }
  }

 private:
  int64_t bytes() const {
    Arena arena(nullptr);
    for (int d = 0; d < kMaxDirections; ++d) arena.take(blocks * width * W), arena.take(blocks * W);
    return arena.used;
  }
};

struct ConvTask {
  const ConvPlan& plan;
  const int64_t L;
  Scalar *x, *out, *gradient, *dx, *weight_sums;

  ConvTask(Arena& arena, const ConvPlan& p) : plan(p), L(p.length) {
    for (Scalar** t : {&x, &out, &gradient, &dx}) *t = arena.take(L * W);
    weight_sums = arena.take(p.width * W);
  }
  // The first tap that meets the sequence, at time t of a filter that looks back or ahead. Outside there are no zeros:
  // times an infinite weight they would not be neutral.
  INLINE int64_t first_tap(bool looks_back, int64_t t) const {
    const int64_t missing = plan.width - 1 - (looks_back ? t : L - 1 - t);
    return missing > 0 ? missing : 0;
  }
  INLINE Vec before_activation(int d, int64_t block, int64_t t) const {
    const Scalar* w = plan.weight[d] + block * plan.width * W;
    Vec sum = Vec::load(plan.bias[d] + block * W);
    const int64_t last = plan.width - 1, step = d == 0 ? 1 : -1;
    for (int64_t k = first_tap(d == 0, t); k <= last; ++k)
      sum = fma(Vec::load(w + k * W), Vec::load(x + (t + step * (k - last)) * W), sum);
    return sum;
  }

  void forward(int64_t unit, int64_t block, const Rows& x_rows, const Rows* y_rows) {
    const ConvArgs& a = plan.args;
    const int64_t channel = plan.first_channel(block), count = plan.rows(unit, block);
    load_rows(a.x, x_rows.base + channel * a.x.row_stride, x_rows, count, L, x, W);
    for (int d = a.first_direction; d <= a.last_direction; ++d) {
      const int64_t offset = y_rows[d].base + channel * a.y[d].row_stride;
      const Window y = window(a.y[d], offset, y_rows[d], count, out);
      for (int64_t t = 0; t < L; ++t) {
        Vec v = before_activation(d, block, t);
        if (a.silu) v = v * sigmoid(v);
        y.set(t, v);
      }
      if (!in_place(y_rows[d], count)) store_rows(a.y[d], offset, y_rows[d], count, L, out, W);
    }
  }

  // Adds to the sums of one partial: dweight [blocks][width][...] and dbias [blocks][...] per direction.
  void backward(int64_t unit, int64_t block, const Rows& x_rows, const Rows* y_rows, const Rows& dx_rows,
                Scalar* const* dweight, Scalar* const* dbias) {
    const ConvBackwardArgs& a = static_cast<const ConvBackwardArgs&>(plan.args);
    const int64_t channel = plan.first_channel(block), count = plan.rows(unit, block), last = plan.width - 1;
    load_rows(a.x, x_rows.base + channel * a.x.row_stride, x_rows, count, L, x, W);
    for (int d = a.first_direction; d <= a.last_direction; ++d) {
      load_rows(a.y[d], y_rows[d].base + channel * a.y[d].row_stride, y_rows[d], count, L, gradient, W);
      const Scalar* w = plan.weight[d] + block * plan.width * W;
      const int64_t step = d == 0 ? 1 : -1;
      LongSum sum;
      for (int64_t t = 0; t < L; ++t) {
        Vec g = Vec::load(gradient + t * W);
        if (a.silu) {
          const Vec v = before_activation(d, block, t), s = sigmoid(v);
          g = g * (s * fma(v, Vec(Scalar(1)) - s, Vec(Scalar(1))));
          g.store(gradient + t * W);
        }
        sum.add(t, g);
      }
      plan.fold(dbias[d] + block * plan.sum_width(), sum.total());
      for (int64_t k = 0; k <= last; ++k) {
        LongSum dw;
        const int64_t apart = last - k, begin = d == 0 ? apart : 0, end = d == 0 ? L : L - apart;
        for (int64_t t = begin; t < end; ++t)
          dw.add_product(t, Vec::load(gradient + t * W), Vec::load(x + (t - step * apart) * W));
        dw.total().store(weight_sums + k * W);
      }
      plan.fold(dweight[d] + block * plan.width * plan.sum_width(), weight_sums, plan.width);
      for (int64_t t = 0; t < L; ++t) {
        Vec v(Scalar(0));
        for (int64_t k = first_tap(d != 0, t); k <= last; ++k)
          v = fma(Vec::load(w + k * W), Vec::load(gradient + (t - step * (k - last)) * W), v);
        if (d > a.first_direction) v = v + Vec::load(dx + t * W);
        v.store(dx + t * W);
      }
    }
    if (a.dx.data) store_rows(a.dx, dx_rows.base + channel * a.dx.row_stride, dx_rows, count, L, dx, W);
  }
};

// Calls body(task, partial, unit, first block, last block) for everything, in parallel over tasks.
template <class F>
static void for_conv_blocks(const ConvPlan& plan, ParallelFor run, const F& body) {
  Arena measure(nullptr);
  const ConvTask measured(measure, plan);
  parallel(run, plan.tasks(), [&](int64_t begin, int64_t end) {
    Memory memory(measure.used, false);
    Arena arena(memory.base);
    ConvTask task(arena, plan);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t partial = i / plan.splits, split = i % plan.splits;
      const int64_t first = plan.first_block(plan.first_segment(split)),
                    last = plan.last_block(plan.first_segment(split + 1) - 1);
      for (int64_t unit = plan.first_unit(partial); unit < plan.first_unit(partial + 1); ++unit)
        body(task, partial, unit, first, last);
    }
  });
}

static void conv_forward(const ConvArgs& a, ParallelFor run) {
  const ConvPlan plan(a);
  for_conv_blocks(plan, run, [&](ConvTask& task, int64_t, int64_t unit, int64_t first, int64_t last) {
    const Rows x = plan.rows_of(a.x, unit), y[] = {plan.rows_of(a.y[0], unit), plan.rows_of(a.y[1], unit)};
    for (int64_t b = first; b < last; ++b) task.forward(unit, b, x, y);
  });
}

static void conv_backward(const ConvBackwardArgs& a, ParallelFor run) {
  const ConvPlan plan(a);
  const int64_t weights = plan.blocks * plan.width * plan.sum_width(), biases = plan.blocks * plan.sum_width(),
                stride = 2 * (weights + biases);
  Memory memory(plan.partials * stride * int64_t(sizeof(Scalar)), true);
  Scalar* const sums = memory.data();
  for_conv_blocks(plan, run, [&](ConvTask& task, int64_t partial, int64_t unit, int64_t first, int64_t last) {
    const Rows x = plan.rows_of(a.x, unit), dx = plan.rows_of(a.dx, unit),
               y[] = {plan.rows_of(a.y[0], unit), plan.rows_of(a.y[1], unit)};
    Scalar* const mine = sums + partial * stride;
    Scalar *const dweight[] = {mine, mine + weights}, *const dbias[] = {mine + 2 * weights,
                                                                        mine + 2 * weights + biases};
    for (int64_t b = first; b < last; ++b) task.backward(unit, b, x, y, dx, dweight, dbias);
  });
  // A filter shared by both directions has one gradient: direction 1 points at the output of direction 0.
  Scalar *const dweight[] = {sums, sums + weights}, *const dbias[] = {sums + 2 * weights, sums + 2 * weights + biases};
  const int d = a.first_direction, directions = a.last_direction - d + 1;
  const auto put = [&](Scalar* const* of, int64_t width, void* const* out) {
    plan.unfold_directions(of + d, directions, stride, width, width, out[d] == out[a.last_direction], out[d],
                           out[a.last_direction]);
  };
  put(dweight, plan.width, a.dweight);
  put(dbias, 1, a.dbias);
}

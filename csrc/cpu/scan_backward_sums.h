// The reductions of the backward scan, in an order that depends on shapes alone: over sequences for parameters, over
// channels for B and C. No atomics. Included inside an ISA namespace.

// Sums over sequences, one set per partial: dA, dD, ddelta_bias and the gradients of constant B and C.
struct SequenceSums {
  Scalar *dA[kMaxDirections], *dD[kMaxDirections], *dbias[kMaxDirections], *constant[kMaxDirections][2];
};

struct SequenceSumsStorage {
  const ScanPlan& plan;
  int64_t stride;  // between partials
  Memory memory;
  SequenceSums first;

  explicit SequenceSumsStorage(const ScanPlan& p)
      : plan(p),
        stride(layout(nullptr) / int64_t(sizeof(Scalar))),
        memory(stride * int64_t(sizeof(Scalar)) * p.partials, true) {
    layout(memory.base);
  }
  SequenceSums of_partial(int64_t partial) const {
    SequenceSums s = first;
    for (int d = 0; d < plan.args.directions; ++d)
      for (Scalar** p : {&s.dA[d], &s.dD[d], &s.dbias[d], &s.constant[d][0], &s.constant[d][1]}) *p += partial * stride;
    return s;
  }

  void finish(const ScanBackwardArgs& args) const {
    const auto& shared = args.shared;
    const auto &g0 = args.grad[0], &g1 = args.grad[1];
    put(first.dA, plan.states, plan.padded, g0.dA, g1.dA, shared.A);
    put(first.dD, 1, 1, g0.dD, g1.dD, shared.D);
    put(first.dbias, 1, 1, g0.ddelta_bias, g1.ddelta_bias, shared.delta_bias);
    Scalar* const B[] = {first.constant[0][0], first.constant[1][0]};
    Scalar* const C[] = {first.constant[0][1], first.constant[1][1]};
    put(B, plan.states, plan.padded, g0.dB_const, g1.dB_const, shared.B);
    put(C, plan.states, plan.padded, g0.dC_const, g1.dC_const, shared.C);
  }

 private:
  int64_t layout(char* base) {
    Arena arena(base);
    const int64_t width = plan.sum_width();
    for (int d = 0; d < plan.args.directions; ++d) {
      const ScanDirection& x = plan.args.dir[d];
      first.dA[d] = arena.take(plan.blocks * plan.padded * width);
      first.dD[d] = arena.take(plan.blocks * width);
      first.dbias[d] = arena.take(plan.blocks * width);
      first.constant[d][0] = arena.take(x.B_const ? plan.blocks * plan.padded * width : 0);
      first.constant[d][1] = arena.take(x.C_const ? plan.blocks * plan.padded * width : 0);
    }
    return arena.used;
  }
  void put(Scalar* const* sums, int64_t width, int64_t padded, void* out0, void* out1, bool shared) const {
    plan.unfold_directions(sums, plan.args.directions, stride, width, padded, shared, out0, out1);
  }
};

// dB and dC of whole groups: stored at once, or, where the segments of a group are spread over tasks, kept until all
// are there and then added in order. A tile is [length][padded], in lane mode [padded / kStates][length][kStates][W].
struct SegmentSums {
  const ScanPlan& plan;
  const ScanBackwardArgs& args;
  const int64_t width, tile, set;  // per row; of one gradient; of both gradients and directions
  Memory kept;

  explicit SegmentSums(const ScanPlan& p)
      : plan(p),
        args(static_cast<const ScanBackwardArgs&>(p.args)),
        width(p.lane_mode ? W : 1),
        tile(p.length * p.padded * width),
        set(2 * p.args.directions * tile),
        kept(p.splits > 1 ? p.units * p.segments * set * int64_t(sizeof(Scalar)) : 0, false) {}

  const SequenceView& gradient(int d, int which) const { return which == 0 ? args.grad[d].dB : args.grad[d].dC; }
  bool is_shared(int which) const { return args.directions == 2 && (which == 0 ? args.shared.B : args.shared.C); }
  // Where the sums of a direction end up; with shared B or C those of both directions in the first view.
  const SequenceView& target(int d, int which) const { return gradient(is_shared(which) ? 0 : d, which); }
  Scalar* slot(int64_t unit, int64_t segment) { return kept.data() + (unit * plan.segments + segment) * set; }

  // sum: complete for the group of this gradient that ends with this segment, but for what the second direction adds.
  void store(int64_t unit, int64_t last_segment, int which, int d, Scalar* sum, const Scalar* second) const {
    const SequenceView& view = gradient(d, which);
    if (!view.data) return;
    if (is_shared(which))
      for (int64_t i = 0; i < tile; ++i) sum[i] += second[i];
    store_one(view, unit, last_segment / plan.own_segments(view), sum);
  }

  void finish(ParallelFor run) {
    if (plan.splits == 1) return;
    parallel(run, plan.units, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit)
        for (int which = 0; which < 2; ++which)
          for (int d = 0; d < args.directions; ++d) {
            const SequenceView& view = gradient(d, which);
            if (view.data) add_slots(unit, which, d, plan.own_segments(view));
          }
    });
  }

 private:
  void add_slots(int64_t unit, int which, int d, int64_t own) {
    for (int64_t first = 0; first < plan.segments; first += own) {
      Scalar* total = slot(unit, first);
      for (int e = d; e < (is_shared(which) ? args.directions : d + 1); ++e)
        for (int64_t s = 1; s < own; ++s)
          for (int64_t i = (2 * e + which) * tile, end = i + tile; i < end; ++i) total[i] += total[s * set + i];
      store(unit, first + own - 1, which, d, total + (2 * d + which) * tile, total + (2 + which) * tile);
    }
  }
  void store_one(const SequenceView& view, int64_t unit, int64_t group, const Scalar* sum) const {
    const Rows rows = plan.rows_of(view, unit);
    const int64_t offset = rows.base + group * view.group_stride;
    if (plan.lane_mode) {
      for (int64_t n = 0; n < plan.states; ++n)
        store_rows(view, offset + n * view.row_stride, rows, plan.rows(unit, 0), plan.length,
                   sum + (n / kStates * plan.length * kStates + n % kStates) * W, kStates * W);
      return;
    }
    for_states(view, plan.states, plan.padded, [&](int64_t n, const Rows& states, int64_t count, int64_t width) {
      store_rows(view, offset + n * view.row_stride, states, count, plan.length, sum + n, plan.padded, width);
    });
  }
};

// Few and short sequences: partial sums for each of many channels would be as large as the tensors. Fewer of them, and
// the segments of a unit spread over tasks, which keeps less (SegmentSums). How many rests on the sequences alone: each
// channel's gradients are summed as if it were the only one.
INLINE int64_t least_partials(const ScanArgs& a) { return a.batch * a.lanes * a.length <= 512 ? 4 : kFewUnits; }

// Sums over the channels of one segment, as the walks form them, and over the segments of one group so far.
struct ChannelSums {
  const ScanPlan& plan;
  SegmentSums* segments;
  int64_t grad_width[kMaxDirections];  // entries per state and time step in `walked`
  Scalar *walked[kMaxDirections][2], *total[kMaxDirections][2];

  ChannelSums(Arena& arena, const ScanPlan& p) : plan(p), segments(nullptr) {
    for (int d = 0; d < p.args.directions; ++d) {
      grad_width[d] = p.per_row[d] ? PerRow::kGradWidth : Shared::kGradWidth;
      for (int which = 0; which < 2; ++which) {
        walked[d][which] = arena.take(size(d, which));
        total[d][which] = arena.take(p.length * p.padded * (p.lane_mode ? W : 1));
      }
    }
  }
  void attach(SegmentSums* s) { segments = s; }

  void clear_segment() {
    for (int d = 0; d < plan.args.directions; ++d)
      for (int which = 0; which < 2; ++which) memset(walked[d][which], 0, size_t(size(d, which)) * sizeof(Scalar));
  }
  void place(int d, int64_t n, BackwardWalk* w) const {
    const int64_t step = kStates * grad_width[d];
    w->dB = walked[d][0] + n * grad_width[d] * (constant(d, 0) ? 1 : plan.length);
    w->dC = walked[d][1] + n * grad_width[d] * (constant(d, 1) ? 1 : plan.length);
    w->dB_step = constant(d, 0) ? 0 : step;
    w->dC_step = constant(d, 1) ? 0 : step;
  }
  void fold_constants(int d, int64_t block, SequenceSums& sums) {
    for (int which = 0; which < 2; ++which) {
      if (!constant(d, which)) continue;
      plan.fold(sums.constant[d][which] + block * plan.padded * plan.sum_width(), walked[d][which], plan.padded);
      memset(walked[d][which], 0, size_t(plan.padded * W) * sizeof(Scalar));
    }
  }

  void end_segment(int64_t unit, int64_t segment) {
    const bool keep = plan.splits > 1;
    for (int which = 0; which < 2; ++which) {
      for (int d = 0; d < plan.args.directions; ++d) {
        const SequenceView& view = segments->target(d, which);
        if (constant(d, which) || !view.data) continue;
        if (keep)
          reduce(walked[d][which], d, true, segments->slot(unit, segment) + (2 * d + which) * segments->tile);
        else if (segment % plan.own_segments(view) != 0)
          reduce(walked[d][which], d, false, total[d][which]);
        else
          start(d, which);
      }
      for (int d = 0; d < plan.args.directions && !keep; ++d) {
        const SequenceView& view = segments->gradient(d, which);
        if (!constant(d, which) && view.data && (segment + 1) % plan.own_segments(view) == 0)
          segments->store(unit, segment, which, d, total[d][which], total[1][which]);
      }
    }
  }

 private:
  void start(int d, int which) {  // a group's total, with its first segment: in lane mode the same tile
    if (!plan.lane_mode) return reduce(walked[d][which], d, true, total[d][which]);
    Scalar* const complete = walked[d][which];
    walked[d][which] = total[d][which], total[d][which] = complete;
  }
  bool constant(int d, int which) const { return which == 0 ? plan.B_const[d] : plan.C_const[d]; }
  int64_t size(int d, int which) const { return (constant(d, which) ? 1 : plan.length) * plan.padded * grad_width[d]; }

  void reduce(const Scalar* from, int d, bool start, Scalar* to) const {
    const int64_t count = plan.length * plan.padded;
    if (plan.lane_mode) {
      for (int64_t i = 0; i < count * W; ++i) to[i] = start ? from[i] : to[i] + from[i];
      return;
    }
    for (int64_t n = 0; n < plan.padded; n += kStates)
      for (int64_t t = 0; t < plan.length; ++t, from += kStates * grad_width[d]) {
        Scalar* const sums = to + t * plan.padded + n;
        if (!plan.per_row[d]) {
          finish4(from, sums, !start);
          continue;
        }
        for (int64_t i = 0; i < kStates; ++i) {
          const Scalar sum = sum_lanes(Vec::load(from + i * W));
          sums[i] = start ? sum : sums[i] + sum;
        }
      }
  }
};

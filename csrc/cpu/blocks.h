// One block of rows between the tensors and tiles, and what every scan does with outputs and their gradients. A tile is
// [length][W]. Included inside an ISA namespace.

INLINE int64_t at_channel(const SequenceView& view, const Rows& rows, int64_t channel) {
  return rows.base + channel * view.row_stride;
}
static Window copy_block(const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit, int64_t block,
                         Scalar* tile) {
  load_rows(view, at_channel(view, rows, plan.first_channel(block)), rows, plan.rows(unit, block), plan.length, tile,
            W);
  return Window::of_tile(tile);
}
NOINLINE static Window load_block(const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit,
                                  int64_t block, Scalar* scratch) {
  if (!view.data) return Window::of_tile(scratch);
  const int64_t count = plan.rows(unit, block);
  if (!in_place(rows, count)) return copy_block(view, rows, plan, unit, block, scratch);
  Window w = window(view, at_channel(view, rows, plan.first_channel(block)), rows, count, scratch);
  if (plan.lane_mode) w.lead = kLead * w.stride;
  return w;
}
// As Scalars, for what reads them again and again.
static Window load_scalars(const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit, int64_t block,
                           Scalar* scratch) {
  return view.dtype == kScalar ? load_block(view, rows, plan, unit, block, scratch)
                               : copy_block(view, rows, plan, unit, block, scratch);
}
NOINLINE static Window block_window(const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit,
                                    int64_t block, Scalar* scratch) {
  return window(view, at_channel(view, rows, plan.first_channel(block)), rows, plan.rows(unit, block), scratch,
                plan.stream);
}
NOINLINE static void store_block(Window w, const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit,
                                 int64_t block) {
  const int64_t count = plan.rows(unit, block), offset = at_channel(view, rows, plan.first_channel(block));
  if (in_place(rows, count)) return;
  store_rows(view, offset, rows, count, plan.length, w.scalars(), W, W, plan.stream && in_lines(view, offset, rows));
}

// dy before scale and gate, and in `gate` what dz is to be multiplied with; either may be where its source is.
static void split_gradient(const OutputArgs& args, Window incoming, Window z, Scalar* dy, Scalar* gate) {
  const int64_t L = args.length;
  const Vec scale = Scalar(args.scale);
  if (!args.z.data) {
    for (int64_t t = 0; t < L; ++t) (incoming.get(t) * scale).store(dy + t * W);
    return;
  }
  for (int64_t t = 0; t < L; ++t) {
    const Vec x = z.get(t), s = sigmoid(x), g = incoming.get(t) * scale;
    (g * (x * s)).store(dy + t * W);
    (g * (s * fma(x, Vec(Scalar(1)) - s, Vec(Scalar(1))))).store(gate + t * W);
  }
}

// Where the gradient of an input goes: into its tensor; where the directions share the input, that of the first is kept
// in a tile, which the second adds.
struct GradientSink {
  const Plan& plan;
  const SequenceView& view;
  const Rows& rows;
  int64_t unit, block;
  bool is_last;
  const Scalar* other;
  Window out;

  GradientSink(const Plan& p, const SequenceView& v, const Rows& r, int64_t u, int64_t b, bool is_shared, int d,
               Scalar* kept, Scalar* scratch)
      : plan(p), view(v), rows(r), unit(u), block(b), is_last(v.data && (!is_shared || d == 1)) {
    other = is_last && is_shared ? kept : nullptr;
    out = is_last ? block_window(view, rows, plan, unit, block, scratch) : Window::of_tile(kept);
  }
  INLINE void set(int64_t t, Vec v) const { out.set(t, other ? Vec::load(other + t * W) + v : v); }
  void store() const {
    if (is_last) store_block(out, view, rows, plan, unit, block);
  }
};

// A gradient tile, plus that of the other direction where both share the input.
static void store_gradient(Scalar* tile, const Scalar* other, const SequenceView& view, const Rows& rows,
                           const Plan& plan, int64_t unit, int64_t block) {
  if (!view.data) return;
  const int64_t L = plan.length;
  const Window out = block_window(view, rows, plan, unit, block, tile);
  if (other)
    for (int64_t t = 0; t < L; ++t) out.set(t, Vec::load(tile + t * W) + Vec::load(other + t * W));
  else if (out.scalars() != tile)
    for (int64_t t = 0; t < L; ++t) out.set(t, Vec::load(tile + t * W));
  store_block(out, view, rows, plan, unit, block);
}

// y = (sum of the directions) * scale * silu(z) of one block, from tiles of the directions' sums. scratch: a tile.
static void store_outputs(const Plan& plan, const OutputArgs& args, const SequenceView* views, const Rows* y_rows,
                          int64_t unit, int64_t block, Scalar* const* tiles, Window z, Scalar* scratch) {
  const int64_t L = plan.length;
  const int outputs = args.concatenate ? args.directions : 1;
  const bool add = !args.concatenate && args.directions == 2;
  const Vec scale = Scalar(args.scale);
  for (int d = 0; d < outputs; ++d) {
    const Window out = block_window(views[d], y_rows[d], plan, unit, block, scratch);
    const Scalar *first = tiles[d], *second = tiles[1];
    for (int64_t t = 0; t < L; ++t) {
      Vec sum = add ? Vec::load(first + t * W) + Vec::load(second + t * W) : Vec::load(first + t * W);
      sum = sum * scale;
      if (args.z.data) {
        const Vec gate = z.get(t);
        sum = sum * (gate * sigmoid(gate));
      }
      out.set(t, sum);
    }
    store_block(out, views[d], y_rows[d], plan, unit, block);
  }
}

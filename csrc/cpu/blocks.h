// One block of rows between the tensors and tiles, and what every scan does with outputs and their gradients. A tile is
// [length][W]. Included inside an ISA namespace.

INLINE int64_t at_channel(const SequenceView& view, const Rows& rows, int64_t channel) {
  return rows.base + channel * view.row_stride;
}
INLINE Window load_block(const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit, int64_t block,
                         Scalar* scratch) {
  return load_window(view, at_channel(view, rows, plan.first_channel(block)), rows, plan.rows(unit, block), plan.length,
                     scratch);
}
INLINE Window block_window(const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit, int64_t block,
                           Scalar* scratch) {
  return window(view, at_channel(view, rows, plan.first_channel(block)), rows, plan.rows(unit, block), scratch);
}
INLINE void store_block(Window w, const SequenceView& view, const Rows& rows, const Plan& plan, int64_t unit,
                        int64_t block) {
  store_window(w, view, at_channel(view, rows, plan.first_channel(block)), rows, plan.rows(unit, block), plan.length);
}

// The incoming gradient dy of direction d before scale and gate; `gate` gets what dz is to be multiplied with.
static void load_gradient(const Plan& plan, const OutputArgs& args, int d, const Rows& y_rows, const Rows& z_rows,
                          int64_t unit, int64_t block, Scalar* dy, Scalar* gate, Scalar* scratch) {
  const int64_t L = plan.length;
  const Window incoming = load_block(args.y[d], y_rows, plan, unit, block, scratch);
  const Vec scale = Scalar(args.scale);
  if (!args.z.data) {
    for (int64_t t = 0; t < L; ++t) (Vec::load(incoming.p + t * incoming.stride) * scale).store(dy + t * W);
    return;
  }
  const Window z = load_block(args.z, z_rows, plan, unit, block, scratch + L * W);
  for (int64_t t = 0; t < L; ++t) {
    const Vec x = Vec::load(z.p + t * z.stride), s = sigmoid(x),
              g = Vec::load(incoming.p + t * incoming.stride) * scale;
    (g * (x * s)).store(dy + t * W);
    (g * (s * fma(x, Vec(Scalar(1)) - s, Vec(Scalar(1))))).store(gate + t * W);
  }
}

// A gradient tile, plus that of the other direction where both share the input.
static void store_gradient(Scalar* tile, const Scalar* other, const SequenceView& view, const Rows& rows,
                           const Plan& plan, int64_t unit, int64_t block) {
  if (!view.data) return;
  const int64_t L = plan.length;
  const Window out = block_window(view, rows, plan, unit, block, tile);
  if (other)
    for (int64_t t = 0; t < L; ++t) (Vec::load(tile + t * W) + Vec::load(other + t * W)).store(out.p + t * out.stride);
  else if (out.p != tile)
    for (int64_t t = 0; t < L; ++t) Vec::load(tile + t * W).store(out.p + t * out.stride);
  store_block(out, view, rows, plan, unit, block);
}

// y = (sum of the directions) * scale * silu(z) of one block, from tiles of the directions' sums. scratch: two tiles.
static void store_outputs(const Plan& plan, const OutputArgs& args, const SequenceView* views, const Rows* y_rows,
                          const Rows& z_rows, int64_t unit, int64_t block, Scalar* const* tiles, Scalar* scratch) {
  const int64_t L = plan.length;
  const int outputs = args.concatenate ? args.directions : 1;
  const bool add = !args.concatenate && args.directions == 2;
  const Vec scale = Scalar(args.scale);
  for (int d = 0; d < outputs; ++d) {
    const Window out = block_window(views[d], y_rows[d], plan, unit, block, scratch + L * W);
    const Scalar *first = tiles[d], *second = tiles[1];
    if (args.z.data) {
      const Window z = load_block(args.z, z_rows, plan, unit, block, scratch);
      for (int64_t t = 0; t < L; ++t) {
        const Vec sum = add ? Vec::load(first + t * W) + Vec::load(second + t * W) : Vec::load(first + t * W);
        const Vec gate = Vec::load(z.p + t * z.stride);
        (sum * scale * (gate * sigmoid(gate))).store(out.p + t * out.stride);
      }
    } else {
      for (int64_t t = 0; t < L; ++t) {
        const Vec sum = add ? Vec::load(first + t * W) + Vec::load(second + t * W) : Vec::load(first + t * W);
        (sum * scale).store(out.p + t * out.stride);
      }
    }
    store_block(out, views[d], y_rows[d], plan, unit, block);
  }
}

// The rows that a pair of blocks reads: where they lie, and how their cache lines are fetched while the pair before
// them is walked. Included inside an ISA namespace.

struct Stream {  // one tensor's lines of one block, one per time step; each walk takes one
  const char* p;
  int64_t step;  // bytes per time step
  INLINE void fetch() {
    PREFETCH(p);
    p += step;
  }
};

struct UnitRows {  // of every sequence tensor of the call, for one unit
  Rows of[kSlots];
  UnitRows() {}
  UnitRows(const ScanPlan& plan, int64_t unit) {
    for (int s = 0; s < kSlots; ++s) of[s] = plan.rows_of(*plan.views[s], unit);
  }
};

struct Inputs {
  const ScanPlan& plan;
  const bool is_backward;  // y is read too: it holds dy
  int64_t unit = -1, next = -1;
  UnitRows rows, next_rows;

  Inputs(Arena& tiles, const ScanPlan& p, bool backward) : plan(p), is_backward(backward) {
    for (int d = 0; d < kMaxDirections; ++d)
      for (Scalar*& tile : u_tile[d]) tile = tiles.take(plan.length * W);
  }

  void begin(int64_t new_unit, int64_t next_unit) {
    rows = new_unit == next && !plan.lane_mode ? next_rows : UnitRows(plan, new_unit);
    unit = new_unit, next = next_unit;
    if (next < plan.units && !plan.lane_mode) next_rows = UnitRows(plan, next);
  }

  // Turns to the blocks [block, block + count) and has the lines of the next two fetched. Not in lane mode: there they
  // lie pages apart, fall into a few sets of the caches and drive one another out before they are read.
  void turn(int64_t block, int64_t count) {
    first = block, streams = taken = 0;
    memset(has_u, 0, sizeof has_u);
    const bool is_last = block + count >= plan.blocks;
    if (plan.lane_mode || (is_last && next >= plan.units)) return;
    for (int s = 0; s < kSlots; ++s)
      if (reads(s)) add(s, is_last ? next_rows : rows, is_last ? 0 : block + count);
  }
  Stream take() { return taken < streams ? stream[taken++] : Stream{address(*plan.views[kDelta], 0), 0}; }

  // The vectors of a block, in place or in the given tile. Those of u, which are read several times, keep to their own.
  Window get(int s, int64_t block, Scalar* tile) const {
    return load_block(*plan.views[s], rows.of[s], plan, unit, block, tile);
  }
  Window get_u(int d, int64_t block) {
    const int64_t own = plan.same_u ? 0 : d, k = block - first;
    if (!has_u[own][k]) u[own][k] = get(kU + own, block, u_tile[own][k]);
    has_u[own][k] = true;
    return u[own][k];
  }

 private:
  Scalar* u_tile[kMaxDirections][2];
  Window u[kMaxDirections][2];
  bool has_u[kMaxDirections][2];
  Stream stream[2 * kSlots];
  int64_t first;
  int streams = 0, taken = 0;

  bool reads(int s) const {
    if (!plan.views[s]->data || (s == kU + 1 && plan.same_u)) return false;
    return (s != kY && s != kY + 1) || (is_backward && (s == kY || plan.args.concatenate));
  }
  void add(int s, const UnitRows& from, int64_t block) {
    const SequenceView& view = *plan.views[s];
    const Rows& r = from.of[s];
    const int64_t size = bytes_of(view.dtype);
    if (!r.contiguous && view.time_stride != 1) return;
    // Rows contiguous in time: as many lines, in the order of memory where the rows follow one another.
    const int64_t step = (r.contiguous ? view.time_stride : view.row_stride * W / plan.length) * size;
    for (int64_t b = block; b < block + 2 && b < plan.blocks; ++b) {
      const char* p = address(view, at_channel(view, r, plan.first_channel(b)));
      if (b > block && r.contiguous && p < stream[streams - 1].p + 64) return;  // the same lines
      stream[streams++] = {p, step};
    }
  }
};

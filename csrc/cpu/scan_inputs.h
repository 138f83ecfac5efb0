// The rows that a pair of blocks reads: where they lie, and how their cache lines are fetched while the pair before
// them is walked. Included inside an ISA namespace.

// One tensor's lines of one block, one per time step; each walk takes one. In lane mode the lines lie pages apart, fall
// into a few sets of the caches and would drive one another out before they are read: there they are copied to a tile.
struct Stream {
  const char* fetched;
  int64_t step;  // bytes per time step
  Scalar* tile = nullptr;
  char* copied = nullptr;
  DType dtype = kScalar;
  int64_t own = 0;  // steps until `fetched` goes on with the lines of the stream after this one
  const char* after = nullptr;

  INLINE void advance() {
    PREFETCH(fetched);
    fetched += step;
    if (!tile) return;
    with_storage(dtype, copied, [&](auto* line) { Vec::load(line).store(tile); });
    copied += step, tile += W;
    if (--own == 0) fetched = after;
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
  const bool copies;       // lines are copied ahead: in lane mode, where each is one vector; backward gains nothing
  int64_t unit = -1, next = -1;
  UnitRows rows, next_rows;

  // What is copied ahead of a pair outlives the pair of another task.
  Inputs(Arena& tiles, Arena& own, const ScanPlan& p, bool backward)
      : plan(p), is_backward(backward), copies(p.lane_mode && !backward && W * sizeof(Scalar) == 64) {
    Arena& arena = copies ? own : tiles;
    for (int s = 0; s < kSlots; ++s)
      for (int k = 0; k < 2; ++k) {
        current.tile[s][k] = reads(s) && (copies || s < kDelta) ? arena.take(plan.length * W) : nullptr;
        coming.tile[s][k] = reads(s) && copies ? arena.take(plan.length * W) : nullptr;
      }
  }

  void begin(int64_t new_unit, int64_t next_unit) {
    rows = new_unit == next ? next_rows : UnitRows(plan, new_unit);
    unit = new_unit, next = next_unit;
    if (next < plan.units) next_rows = UnitRows(plan, next);
  }

  // Turns to the blocks [block, block + count) and has the lines of the next two fetched.
  void turn(int64_t block, int64_t count) {
    if (copies) {
      const Tiles last = current;
      current = coming, coming = last;
    }
    if (current.unit != unit || current.block != block) current.clear(unit, block);
    const bool is_last = block + count >= plan.blocks;
    coming.clear(is_last ? next : unit, is_last ? 0 : block + count);
    streams = taken = 0;
    if ((plan.lane_mode && !copies) || coming.unit >= plan.units) return;
    for (int s = 0; s < kSlots; ++s)
      if (reads(s)) add(s, is_last ? next_rows : rows);
    if (copies && streams) chain();
  }
  Stream take() {
    if (taken == streams) return {address(*plan.views[kDelta], 0), 0};
    if (copies) {
      const int s = source[taken] / 2, k = source[taken] % 2;
      coming.has[s][k] = true, coming.window[s][k] = Window::of_tile(coming.tile[s][k]);
    }
    return stream[taken++];
  }

  // The vectors of a block: in place, in a tile that lasts for the pair, or in the given one.
  Window get(int s, int64_t block, Scalar* tile) {
    const int64_t k = block - current.block;
    Scalar* own = current.tile[s][k];
    if (!own) return load_block(*plan.views[s], rows.of[s], plan, unit, block, tile);
    if (!current.has[s][k]) current.window[s][k] = load(s, block, own);
    current.has[s][k] = true;
    return current.window[s][k];
  }
  Window get_u(int d, int64_t block) { return get(kU + (plan.same_u ? 0 : d), block, nullptr); }

 private:
  struct Tiles {  // of a pair of blocks
    int64_t unit = -1, block = -1;
    Scalar* tile[kSlots][2];
    Window window[kSlots][2];
    bool has[kSlots][2];
    void clear(int64_t of_unit, int64_t of_block) {
      unit = of_unit, block = of_block;
      memset(has, 0, sizeof has);
    }
  } current, coming;
  Stream stream[2 * kSlots];
  int source[2 * kSlots];  // slot and block of a stream: 2 s + k
  int streams = 0, taken = 0;

  bool reads(int s) const {
    if (!plan.views[s]->data || (s == kU + 1 && plan.same_u)) return false;
    return (s != kY && s != kY + 1) || (is_backward && (s == kY || plan.args.concatenate));
  }
  bool copies_block(int s, const Rows& r, int64_t of_unit, int64_t block) const {
    return copies && in_place(r, plan.rows(of_unit, block));
  }
  Window load(int s, int64_t block, Scalar* tile) const {
    const SequenceView& view = *plan.views[s];
    const Rows& r = rows.of[s];
    return copies ? copy_block(view, r, plan, unit, block, tile) : load_block(view, r, plan, unit, block, tile);
  }
  // The lines of the coming pair.
  void add(int s, const UnitRows& from) {
    const SequenceView& view = *plan.views[s];
    const Rows& r = from.of[s];
    const int64_t size = bytes_of(view.dtype);
    if (!r.contiguous && view.time_stride != 1) return;
    // Rows contiguous in time: as many lines, in the order of memory where the rows follow one another.
    const int64_t step = (r.contiguous ? view.time_stride : view.row_stride * W / plan.length) * size;
    for (int64_t k = 0; k < 2 && coming.block + k < plan.blocks; ++k) {
      if (plan.lane_mode && !copies_block(s, r, coming.unit, coming.block + k)) return;
      char* const p = address(view, at_channel(view, r, plan.first_channel(coming.block + k)));
      if (k && !copies && r.contiguous && p < stream[streams - 1].fetched + 64) return;  // the same lines
      source[streams] = int(2 * s + k);
      stream[streams++] = {p, step, coming.tile[s][k], p, view.dtype};
    }
  }
  // Lines are fetched kLead steps before they are copied, the last of a stream with the first of the next.
  void chain() {
    const int64_t lead = plan.length < kLead ? plan.length : kLead;
    for (int64_t t = 0; t < lead; ++t) PREFETCH(stream[0].copied + t * stream[0].step);
    for (int i = 0; i < streams; ++i) {
      Stream& x = stream[i];
      x.after = i + 1 < streams ? stream[i + 1].copied : x.copied;
      x.own = plan.length - lead;
      x.fetched = x.own ? x.copied + lead * x.step : x.after;
    }
  }
};

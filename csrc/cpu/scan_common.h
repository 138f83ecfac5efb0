// What the forward and the backward scan share: packed parameters, access to B and C, and the passes over one tile that
// turn delta and u into what the recurrence reads. Included inside an ISA namespace.

constexpr int64_t kStates = 4;  // states walked at once; with two blocks, eight recurrences in flight
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// B and C of one time step: the same for all rows of a block (one sequence, many channels) ...
struct Shared {
  static constexpr int64_t kWidth = 1;
  INLINE static Vec get(const Scalar* p, int64_t n) { return Vec::broadcast(p + n); }
  static constexpr int64_t kGradWidth = kReduceWidth / kStates;  // per state
  INLINE static void accumulate(Scalar* acc, const Vec* v) { accumulate4(acc, v[0], v[1], v[2], v[3]); }
};
// ... or one for each row (many sequences of one channel; or constant in time, different for each channel).
struct PerRow {
  static constexpr int64_t kWidth = W;
  INLINE static Vec get(const Scalar* p, int64_t n) { return Vec::load(p + n * W); }
  static constexpr int64_t kGradWidth = W;
  INLINE static void accumulate(Scalar* acc, const Vec* v) {
    UNROLL
    for (int64_t n = 0; n < kStates; ++n) (Vec::load(acc + n * W) + v[n]).store(acc + n * W);
  }
};

struct ScanPlan : Plan {
  const ScanArgs& args;
  int64_t states, padded;  // padded to whole groups of kStates; the padding has A = B = C = 0
  bool per_row[kMaxDirections];
  int64_t at_once[kMaxDirections];  // blocks that share B and C
  Memory parameters;
  Scalar *A[kMaxDirections], *largest_A[kMaxDirections], *D[kMaxDirections], *bias[kMaxDirections];
  Scalar *B_const[kMaxDirections], *C_const[kMaxDirections];

  explicit ScanPlan(const ScanArgs& a)
      : Plan(a.batch, a.channels, a.length, a.lanes, a.groups, a.dir[0].u),
        args(a),
        states(a.states),
        padded((a.states + kStates - 1) / kStates * kStates),
        parameters(parameter_bytes(), false) {
    Arena arena(parameters.base);
    take_parameters(arena);
    for (int d = 0; d < a.directions; ++d) {
      const ScanDirection& x = a.dir[d];
      const bool constant = x.B_const || x.C_const;
      per_row[d] = lane_mode || constant;
      at_once[d] = constant ? 1 : 2;
      pack(x.A, states, padded, Scalar(kLog2E), A[d]);
      pack(x.D, 1, 1, 1, D[d]);
      pack(x.delta_bias, 1, 1, 1, bias[d]);
      if (x.B_const) pack(x.B_const, states, padded, 1, B_const[d]);
      if (x.C_const) pack(x.C_const, states, padded, 1, C_const[d]);
      for (int64_t b = 0; b < blocks; ++b) {
        Vec largest(Scalar(0));
        for (int64_t n = 0; n < padded; ++n) largest = max_bits(largest, abs(Vec::load(A[d] + (b * padded + n) * W)));
        largest.store(largest_A[d] + b * W);
      }
    }
  }

  // 2^(delta A) needs the slow exponential if any product may leave the range of normal numbers, or is not finite.
  bool needs_any(int d, int64_t block, Vec largest_delta) const {
    Scalar s[W];
    (largest_delta * Vec::load(largest_A[d] + block * W)).store(s);
    bool near = true;
    for (int64_t i = 0; i < W; ++i) near = near && s[i] < Scalar(125);
    return !near;
  }
  int64_t bc_width(int d) const { return per_row[d] ? W : 1; }
  int64_t bc_size(int d) const { return length * padded * bc_width(d); }

 private:
  void take_parameters(Arena& arena) {
    for (int d = 0; d < args.directions; ++d) {
      A[d] = arena.take(blocks * padded * W);
      largest_A[d] = arena.take(blocks * W);
      D[d] = arena.take(blocks * W);
      bias[d] = arena.take(blocks * W);
      B_const[d] = args.dir[d].B_const ? arena.take(blocks * padded * W) : nullptr;
      C_const[d] = args.dir[d].C_const ? arena.take(blocks * padded * W) : nullptr;
    }
  }
  int64_t parameter_bytes() {
    Arena arena(nullptr);
    take_parameters(arena);
    return arena.used;
  }
};

// B and C of one unit and group (each may have fewer groups of its own), as the recurrence reads them:
// [length][padded][1 or W].
struct StateTile {
  Scalar* scratch[kMaxDirections][2];
  const Scalar* p[kMaxDirections][2];  // B, C
  int64_t step[kMaxDirections][2];     // per time step; 0 if constant

  StateTile(Arena& arena, const ScanPlan& plan) {
    for (int d = 0; d < plan.args.directions; ++d)
      for (int which = 0; which < 2; ++which) scratch[d][which] = arena.take(plan.bc_size(d));
  }

  void load(const ScanPlan& plan, int64_t unit, int64_t group) {
    for (int d = 0; d < plan.args.directions; ++d) {
      const ScanDirection& x = plan.args.dir[d];
      if (!x.B_const) load_one(plan, x.B, unit, group, d, 0);
      if (!x.C_const) load_one(plan, x.C, unit, group, d, 1);
    }
  }
  const Scalar* at(const ScanPlan& plan, int d, int which, int64_t block) const {
    const Scalar* constant = which == 0 ? plan.B_const[d] : plan.C_const[d];
    return constant ? constant + block * plan.padded * W : p[d][which];
  }
  int64_t step_of(const ScanPlan& plan, int d, int which) const {
    return (which == 0 ? plan.B_const[d] : plan.C_const[d]) ? 0 : step[d][which];
  }

 private:
  void load_one(const ScanPlan& plan, const SequenceView& view, int64_t unit, int64_t group, int d, int which) {
    const int64_t N = plan.states, padded = plan.padded, L = plan.length;
    const Rows rows = plan.rows_of(view, unit);
    const int64_t offset = rows.base + plan.own_group(view, group) * view.group_stride;
    Scalar* tile = scratch[d][which];
    p[d][which] = tile;
    step[d][which] = padded * plan.bc_width(d);
    const bool native = view.dtype == plan.args.compute;
    if (!plan.per_row[d] && native && view.row_stride == 1 && N == padded) {
      p[d][which] = static_cast<const Scalar*>(view.data) + offset;
      step[d][which] = view.time_stride;
      return;
    }
    if (N < padded) memset(tile, 0, size_t(plan.bc_size(d)) * sizeof(Scalar));
    if (plan.lane_mode) {
      const int64_t count = plan.rows(unit, 0);
      for (int64_t n = 0; n < N; ++n)
        load_rows(view, offset + n * view.row_stride, rows, count, L, tile + n * W, padded * W);
      return;
    }
    const int64_t width = plan.bc_width(d);
    with_storage(view, offset, [&](auto* source) {
      for (int64_t t = 0; t < L; ++t)
        for (int64_t n = 0; n < N; ++n) {
          const Scalar value = to_float(source[t * view.time_stride + n * view.row_stride]);
          for (int64_t i = 0; i < width; ++i) tile[(t * padded + n) * width + i] = value;
        }
    });
  }
};

// Rows of every sequence tensor of the call for one unit.
struct UnitRows {
  Rows u[kMaxDirections], delta[kMaxDirections], z, y[kMaxDirections];
  UnitRows() {}
  UnitRows(const ScanPlan& plan, int64_t unit) {
    const ScanArgs& a = plan.args;
    for (int d = 0; d < a.directions; ++d) {
      u[d] = plan.rows_of(a.dir[d].u, unit);
      delta[d] = plan.rows_of(a.dir[d].delta, unit);
      y[d] = plan.rows_of(a.y[d], unit);
    }
    z = plan.rows_of(a.z, unit);
  }
};

// Cache lines that the next blocks will read, fetched one per time step while the present blocks are walked. A stream
// is one tensor's lines of one block; each walk takes one.
struct Ahead {
  static constexpr int kStreams = 16;
  const char* start[kStreams];
  int64_t step[kStreams];  // bytes per time step
  int count = 0, taken = 0;

  void clear() { count = taken = 0; }
  // For the two blocks from `block` on, or where the unit ends the first two of unit `next`.
  void fill(const ScanPlan& plan, const UnitRows& rows, const UnitRows& next_rows, int64_t next, int64_t block,
            bool backward) {
    clear();
    const bool is_last = block >= plan.blocks;
    if (is_last && next >= plan.units) return;
    const UnitRows& from = is_last ? next_rows : rows;
    const int64_t first = is_last ? 0 : block;
    const ScanArgs& a = plan.args;
    for (int d = 0; d < a.directions; ++d) {
      if (d == 0 || a.dir[1].u.data != a.dir[0].u.data) add(plan, a.dir[d].u, from.u[d], first);
      add(plan, a.dir[d].delta, from.delta[d], first);
      if (backward && (d == 0 || a.concatenate)) add(plan, a.y[d], from.y[d], first);
    }
    add(plan, a.z, from.z, first);
  }
  template <class Walk>
  void take(Walk* w) {
    const bool any = taken < count;
    w->ahead = any ? start[taken] : reinterpret_cast<const char*>(w->delta);
    w->ahead_step = any ? step[taken++] : 0;
  }

 private:
  void add(const ScanPlan& plan, const SequenceView& view, const Rows& rows, int64_t first) {
    if (!view.data || !rows.contiguous) return;
    const int64_t size = view.dtype == DType::kFloat64 ? 8 : view.dtype == DType::kFloat32 ? 4 : 2;
    for (int64_t b = first; b < first + 2 && b < plan.blocks && count < kStreams; ++b) {
      const char* p = static_cast<const char*>(view.data) + at_channel(view, rows, plan.first_channel(b)) * size;
      if (b > first && p < start[count - 1] + 64) return;  // the same lines
      start[count] = p;
      step[count++] = view.time_stride * size;
    }
  }
};

// (batch, channels, states, lanes) tensors to and from [padded][W] vectors of one block; null reads as zero.
static void load_state(const ScanPlan& plan, const void* source, int64_t unit, int64_t block, Scalar* state) {
  memset(state, 0, size_t(plan.padded * W) * sizeof(Scalar));
  if (!source) return;
  for (int64_t i = 0; i < plan.rows(unit, block); ++i)
    for (int64_t n = 0; n < plan.states; ++n)
      state[n * W + i] = static_cast<const Scalar*>(source)[plan.state_index(unit, block, i, n, plan.states)];
}
static void store_state(const ScanPlan& plan, void* target, int64_t unit, int64_t block, const Scalar* state) {
  for (int64_t i = 0; i < plan.rows(unit, block); ++i)
    for (int64_t n = 0; n < plan.states; ++n)
      static_cast<Scalar*>(target)[plan.state_index(unit, block, i, n, plan.states)] = state[n * W + i];
}

// The tasks of one thread, with memory of their own and tiles in common.
template <class Task>
struct Tasks {
  struct Sizes {
    int64_t tiles, own;
    explicit Sizes(const ScanPlan& plan) {
      Arena tile_arena(nullptr), own_arena(nullptr);
      const Task measured(tile_arena, own_arena, plan);
      tiles = tile_arena.used, own = own_arena.used;
    }
  } sizes;
  Memory memory;
  Arena tiles, same_tiles, own;
  Task first, second;
  Task* const all[kTogether];

  explicit Tasks(const ScanPlan& plan)
      : sizes(plan),
        memory(sizes.tiles + kTogether * sizes.own, false),
        tiles(memory.base),
        same_tiles(memory.base),
        own(memory.base + sizes.tiles),
        first(tiles, own, plan),
        second(same_tiles, own, plan),
        all{&first, &second} {}
};

// Takes the units [first, last) through the blocks of some segments: one by one, or where their rows share cache lines
// together, each by its own task. The tasks share tiles, which live for a pair of blocks.
template <class Task>
static void run_units(Task* const* tasks, const ScanPlan& plan, int64_t first, int64_t last, int64_t split) {
  const int64_t first_segment = plan.first_segment(split), last_segment = plan.first_segment(split + 1);
  for (int64_t unit = first, count; unit < last; unit += count) {
    count = plan.units_from(unit, last);
    for (int64_t i = 0; i < count; ++i) tasks[i]->begin(unit + i, unit + count);
    for (int64_t s = first_segment; s < last_segment; ++s) {
      const bool new_group = s == first_segment || plan.group_of_segment(s) != plan.group_of_segment(s - 1);
      for (int64_t i = 0; i < count; ++i) tasks[i]->begin_segment(s, new_group);
      for (int64_t b = plan.first_block(s), end = plan.last_block(s); b < end; b += 2)
        for (int64_t i = 0; i < count; ++i) tasks[i]->scan_blocks(b, b + 1 < end ? 2 : 1, i + 1 == count);
      for (int64_t i = 0; i < count; ++i) tasks[i]->end_segment(s);
    }
  }
}

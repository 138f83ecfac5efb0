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

enum Slot { kU, kDelta = 2, kY = 4, kZ = 6, kSlots };  // tensors (batch, channels, length, *lanes); of direction d: + d

template <bool kOneRow>
struct Choose {
  using Rows = PerRow;
};
template <>
struct Choose<true> {
  using Rows = Shared;  // the same, and compiled once
};
using EachRow = Choose<W == 1>::Rows;

struct ScanPlan : Plan {
  const ScanArgs& args;
  const SequenceView* views[kSlots];
  bool same_u;
  int64_t states, padded;  // padded to whole groups of kStates, one at least; the padding has A = B = C = 0
  bool per_row[kMaxDirections];
  int64_t at_once[kMaxDirections];  // blocks that share B and C
  Memory parameters;
  Scalar *A[kMaxDirections], *largest_A[kMaxDirections], *D[kMaxDirections], *bias[kMaxDirections];
  Scalar *B_const[kMaxDirections], *C_const[kMaxDirections];

  explicit ScanPlan(const ScanArgs& a, int64_t least = kFewUnits)
      : Plan(a.batch, a.channels, a.length, a.lanes, a.groups, a.dir[0].u, least),
        args(a),
        states(a.states),
        padded(a.states > 0 ? (a.states + kStates - 1) / kStates * kStates : kStates),
        parameters(parameter_bytes(), false) {
    Arena arena(parameters.base);
    take_parameters(arena);
    for (int d = 0; d < kMaxDirections; ++d)
      views[kU + d] = &a.dir[d].u, views[kDelta + d] = &a.dir[d].delta, views[kY + d] = &a.y[d];
    views[kZ] = &a.z;
    same_u = a.directions == 2 && is_same(a.dir[0].u, a.dir[1].u);
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
    return !all_less(largest_delta * Vec::load(largest_A[d] + block * W), Vec(Scalar(125)));
  }
  // B and C of a unit are tiles of [length][padded], or where they differ from row to row [padded / kStates][length]
  // [kStates][W], so that a walk reads on and on.
  int64_t bc_width(int d) const { return per_row[d] ? W : 1; }
  int64_t bc_size(int d) const { return length * padded * bc_width(d); }
  int64_t bc_step(int d) const { return per_row[d] ? kStates * W : padded; }
  int64_t bc_state(int d, int64_t n) const {
    return per_row[d] ? (n / kStates * length * kStates + n % kStates) * W : n;
  }

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

// Calls f(first state, rows, count, width) for the states of a sequence as rows of a tile [length][padded].
template <class F>
INLINE void for_states(const SequenceView& view, int64_t states, int64_t padded, const F& f) {
  const Rows rows = Rows::apart(0, view.row_stride);
  for (int64_t n = 0; n < states; n += W) {
    const int64_t width = padded - n < W ? padded - n : W;
    f(n, rows, states - n < width ? states - n : width, width);
  }
}

// B and C of one unit and group (each may have fewer groups of its own), as the recurrence reads them.
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
  const Scalar* at(const ScanPlan& plan, int d, int which, int64_t block, int64_t n) const {
    const Scalar* constant = which == 0 ? plan.B_const[d] : plan.C_const[d];
    return constant ? constant + (block * plan.padded + n) * W : p[d][which] + plan.bc_state(d, n);
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
    step[d][which] = plan.bc_step(d);
    if (!plan.per_row[d] && view.dtype == kScalar && view.row_stride == 1 && N == padded) {
      p[d][which] = static_cast<const Scalar*>(view.data) + offset;
      step[d][which] = view.time_stride;
      return;
    }
    if (N < padded) memset(tile, 0, size_t(plan.bc_size(d)) * sizeof(Scalar));
    if (plan.lane_mode) {
      const int64_t count = plan.rows(unit, 0);
      for (int64_t n = 0; n < N; ++n)
        load_rows(view, offset + n * view.row_stride, rows, count, L, tile + plan.bc_state(d, n), plan.bc_step(d));
      return;
    }
    if (!plan.per_row[d]) {
      for_states(view, N, padded, [&](int64_t n, const Rows& states, int64_t count, int64_t width) {
        load_rows(view, offset + n * view.row_stride, states, count, L, tile + n, padded, width);
      });
      return;
    }
    with_storage(view.dtype, address(view, offset), [&](auto* source) {
      for (int64_t n = 0; n < N; ++n)
        for (int64_t t = 0; t < L; ++t)
          Vec(to_float(source[t * view.time_stride + n * view.row_stride]))
              .store(tile + t * plan.bc_step(d) + plan.bc_state(d, n));
    });
  }
};

// x = raw + bias and e = e^-|x|, from which softplus follows in a pass of its own: as one pass, the dependent operations
// of an element would reach further than a processor looks ahead. x may be where raw is.
INLINE void begin_softplus(const Window& raw, Vec bias, int64_t length, Scalar* x, Scalar* e) {
  for (int64_t t = 0; t < length; ++t) {
    const Vec biased = raw.get(t) + bias;
    biased.store(x + t * W);
    exp_minus_abs(biased).store(e + t * W);
  }
}

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
        for (int64_t i = 0; i < count; ++i) tasks[i]->scan_blocks(b, b + 1 < end ? 2 : 1);
      for (int64_t i = 0; i < count; ++i) tasks[i]->end_segment(s);
    }
  }
}

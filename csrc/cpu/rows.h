// Tiles: W rows side by side, one vector per time step; fewer where `width` says so. A row is a channel of one
// sequence, or a sequence (batch, lane) of one channel; either way it starts at some offset and advances by the
// tensor's time stride. Any strides are read and written in place: rows next to each other as vectors, rows contiguous
// in time through transposes, the rest one by one. Included inside an ISA namespace.

using Scalar = Vec::Scalar;
constexpr int64_t W = Vec::W;
constexpr int64_t kLead = 32;  // time steps from fetching a line to reading it, where these lie too far apart for the
                               // processor to see the pattern

struct Rows {
  int64_t base;       // offset of the first row for channel (or state) 0
  int64_t offset[W];  // of each row, relative to the first
  bool contiguous;    // offset[i] == i

  static Rows apart(int64_t base, int64_t stride) {
    Rows r;
    r.base = base, r.contiguous = W == 1 || stride == 1;
    for (int64_t i = 0; i < W; ++i) r.offset[i] = i * stride;
    return r;
  }
};

template <class T>
INLINE void put(Vec v, T* p, bool) {
  v.store(p);
}
INLINE void put(Vec v, Scalar* p, bool stream) { stream ? v.stream(p) : v.store(p); }

template <class T>
INLINE void load_tile(const T* p, const Rows& rows, int64_t count, int64_t time_stride, int64_t length, Scalar* tile,
                      int64_t tile_stride, int64_t width) {
  if (rows.contiguous && count == W) {
    for (int64_t t = 0; t < length; ++t) {
      PREFETCH(p + (t + kLead) * time_stride);
      Vec::load(p + t * time_stride).store(tile + t * tile_stride);
    }
    return;
  }
  int64_t t = 0;
  if (time_stride == 1 && !rows.contiguous && width == W)
    for (; t + W <= length; t += W) {
      Vec r[W];
      for (int64_t i = 0; i < W; ++i) r[i] = i < count ? Vec::load(p + rows.offset[i] + t) : Vec(Scalar(0));
      transpose(r);
      for (int64_t i = 0; i < W; ++i) r[i].store(tile + (t + i) * tile_stride);
    }
  for (; t < length; ++t)
    for (int64_t i = 0; i < width; ++i)
      tile[t * tile_stride + i] = i < count ? to_float(p[rows.offset[i] + t * time_stride]) : Scalar(0);
}

template <class T>
INLINE void store_tile(T* p, const Rows& rows, int64_t count, int64_t time_stride, int64_t length, const Scalar* tile,
                       int64_t tile_stride, int64_t width, bool stream) {
  if (rows.contiguous && count == W) {
    for (int64_t t = 0; t < length; ++t) Vec::load(tile + t * tile_stride).store(p + t * time_stride);
    return;
  }
  int64_t t = 0;
  if (time_stride == 1 && !rows.contiguous && width == W)
    for (; t + W <= length; t += W) {
      Vec r[W];
      for (int64_t i = 0; i < W; ++i) r[i] = Vec::load(tile + (t + i) * tile_stride);
      transpose(r);
      for (int64_t i = 0; i < count; ++i) put(r[i], p + rows.offset[i] + t, stream);
    }
  for (; t < length; ++t)
    for (int64_t i = 0; i < count; ++i) from_float(tile[t * tile_stride + i], p + rows.offset[i] + t * time_stride);
}

constexpr DType kScalar = sizeof(Scalar) == 8 ? DType::kFloat64 : DType::kFloat32;
INLINE int64_t bytes_of(DType type) { return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2; }

INLINE char* address(const SequenceView& view, int64_t offset) {
  return static_cast<char*>(view.data) + offset * bytes_of(view.dtype);
}

// Calls f(p as a pointer of the storage type).
template <class F>
INLINE auto with_storage(DType dtype, char* p, F&& f) {
  if constexpr (sizeof(Scalar) == 4) {
    if (dtype == DType::kBFloat16) return f(reinterpret_cast<BFloat16*>(p));
    if (dtype == DType::kFloat16) return f(reinterpret_cast<Float16*>(p));
  }
  return f(reinterpret_cast<Scalar*>(p));
}

NOINLINE static void load_rows(const SequenceView& view, int64_t offset, const Rows& rows, int64_t count,
                               int64_t length, Scalar* tile, int64_t tile_stride, int64_t width = W) {
  with_storage(view.dtype, address(view, offset),
               [&](auto* p) { load_tile(p, rows, count, view.time_stride, length, tile, tile_stride, width); });
}
NOINLINE static void store_rows(const SequenceView& view, int64_t offset, const Rows& rows, int64_t count,
                                int64_t length, const Scalar* tile, int64_t tile_stride, int64_t width = W,
                                bool stream = false) {
  with_storage(view.dtype, address(view, offset), [&](auto* p) {
    store_tile(p, rows, count, view.time_stride, length, tile, tile_stride, width, stream);
  });
}

// A tile as it is read or written by the element-wise passes: in the tensor itself, of any type, where W elements lie
// side by side; else in scratch memory.
struct Window {
  char* p;
  int64_t stride;  // bytes
  DType dtype = kScalar;
  bool stream = false;  // written past the caches
  int64_t lead = 0;     // bytes of kLead time steps, where lines have to be fetched

  static Window of_tile(Scalar* tile) { return {reinterpret_cast<char*>(tile), W * int64_t(sizeof(Scalar))}; }

  INLINE Vec get(int64_t t) const {
    PREFETCH(p + t * stride + lead);
    return with_storage(dtype, p + t * stride, [](auto* at) { return Vec::load(at); });
  }
  INLINE void set(int64_t t, Vec v) const {
    with_storage(dtype, p + t * stride, [&](auto* at) { put(v, at, stream); });
  }
  // Where dtype is kScalar.
  Scalar* scalars() const { return reinterpret_cast<Scalar*>(p); }
  int64_t scalar_stride() const { return stride / int64_t(sizeof(Scalar)); }
};
INLINE bool in_place(const Rows& rows, int64_t count) { return rows.contiguous && count == W; }
// Whether every vector of these rows, or of one row in time, is a whole cache line.
INLINE bool in_lines(const SequenceView& view, int64_t offset, const Rows& rows) {
  int64_t any = offset | (rows.contiguous ? view.time_stride : 0);
  for (int64_t i = 0; i < W && !rows.contiguous; ++i) any |= rows.offset[i];
  return Vec::kStreams && (reinterpret_cast<uintptr_t>(view.data) & 63) == 0 && any % W == 0;
}
INLINE Window window(const SequenceView& view, int64_t offset, const Rows& rows, int64_t count, Scalar* scratch,
                     bool stream = false) {
  if (!in_place(rows, count)) return Window::of_tile(scratch);
  return {address(view, offset), view.time_stride * bytes_of(view.dtype), view.dtype,
          stream && in_lines(view, offset, rows)};
}

INLINE bool is_same(const SequenceView& a, const SequenceView& b) {
  bool same = a.data == b.data && a.batch_stride == b.batch_stride && a.row_stride == b.row_stride &&
              a.time_stride == b.time_stride && a.lane_dims == b.lane_dims;
  for (int32_t i = 0; i < a.lane_dims; ++i)
    same = same && a.lane_size[i] == b.lane_size[i] && a.lane_stride[i] == b.lane_stride[i];
  return same;
}
INLINE int64_t sequence_offset(const SequenceView& view, int64_t lanes, int64_t sequence) {
  int64_t offset = sequence / lanes * view.batch_stride, lane = sequence % lanes;
  for (int32_t d = view.lane_dims; d-- > 0; lane /= view.lane_size[d])
    offset += lane % view.lane_size[d] * view.lane_stride[d];
  return offset;
}

INLINE Scalar sum_lanes(Vec v) {
  Scalar s[W];
  v.store(s);
  for (int64_t width = W / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

// A sum over time, in runs: the error of one long sum grows with its length.
struct LongSum {
  static constexpr int64_t kRun = 32;
  Vec sum, run;

  INLINE LongSum() : sum(Scalar(0)), run(Scalar(0)) {}
  INLINE void turn(int64_t t) {
    if (t % kRun != 0) return;
    sum = sum + run;
    run = Vec(Scalar(0));
  }
  INLINE void add(int64_t t, Vec x) {
    turn(t);
    run = run + x;
  }
  INLINE void add_product(int64_t t, Vec a, Vec b) {
    turn(t);
    run = fma(a, b, run);
  }
  INLINE Vec total() const { return sum + run; }
};

// Scratch memory of one thread: the same constructor measures (base null) and hands out. Many tiles are walked side by
// side and are powers of two long: without the gap a time step of all of them would fall into one set of the caches.
struct Arena {
  static constexpr int64_t kLine = 64, kGap = 5 * kLine;
  char* base;
  int64_t used = 0;
  explicit Arena(char* b) : base(b) {}
  Scalar* take(int64_t count) {
    Scalar* p = reinterpret_cast<Scalar*>(base + used);
    used += (count * int64_t(sizeof(Scalar)) + kLine - 1) / kLine * kLine + kGap;
    return p;
  }
};
struct Memory {
  void* block;
  char* base;
  Memory(int64_t bytes, bool zero) : block(zero ? calloc(1, size_t(bytes) + 64) : malloc(size_t(bytes) + 64)) {
    if (!block) abort();
    base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block) + 63) & ~uintptr_t(63));
  }
  ~Memory() { free(block); }
  Memory(const Memory&) = delete;
  Scalar* data() { return reinterpret_cast<Scalar*>(base); }
};

// How a call is divided. A unit is what shares B and C: one sequence, its channels side by side in vectors ("channel
// mode"); or W sequences side by side, one channel after another ("lane mode", where neither channels nor time are
// contiguous). Both walk blocks of rows; two blocks are scanned together so that they share every load of B and C. A
// run of blocks is a segment: sums over channels are formed per segment and added in order, so that no result depends
// on how segments and units are spread over threads. Included inside an ISA namespace.

constexpr int64_t kMaxPartials = 64;  // of sums over sequences
constexpr int64_t kFewUnits = 16;     // below this, threads also share the channels of a unit
constexpr int64_t kTogether = 2;      // units at most that are taken through the blocks together
constexpr int64_t kLarge = 1 << 19;   // elements of an output that does not stay in the caches of a core

struct Plan {
  bool lane_mode;
  int64_t batch, channels, length, lanes, groups;
  int64_t sequences, units;
  int64_t group_channels, block_channels, group_blocks, blocks;
  int64_t segment_blocks, group_segments, segments;
  int64_t partials, splits;  // tasks = partials * splits: a run of units, a run of segments
  int64_t together;          // neighbouring units whose rows lie in the same cache lines
  bool stream;               // outputs are written past the caches

  // least: partials at least, whatever they take; sums: numbers per channel that a partial sum over sequences holds
  Plan(int64_t batch_, int64_t channels_, int64_t length_, int64_t lanes_, int64_t groups_, const SequenceView& like,
       int64_t least = kFewUnits, int64_t sums = 128)
      : batch(batch_), channels(channels_), length(length_), lanes(lanes_), groups(groups_) {
    sequences = batch * lanes;
    // By layout alone: slices of a tensor are computed as the whole is, to the last bit.
    lane_mode = W > 1 && like.row_stride != 1 && like.time_stride != 1;
    stream = sequences * channels * length >= kLarge;
    units = lane_mode ? (sequences + W - 1) / W : sequences;
    together = lane_mode && 2 * W * bytes_of(like.dtype) <= 64 ? kTogether : 1;
    group_channels = channels / groups;
    block_channels = lane_mode ? 1 : W;
    group_blocks = (group_channels + block_channels - 1) / block_channels;
    blocks = groups * group_blocks;
    segment_blocks = lane_mode ? 64 : 8;
    group_segments = (group_blocks + segment_blocks - 1) / segment_blocks;
    segments = groups * group_segments;
    partials = sequences * length / sums;  // so that the sums stay small beside the tensors
    if (partials > kMaxPartials) partials = kMaxPartials;
    if (partials < least) partials = least;
    if (partials > units) partials = units;
    splits = partials < kFewUnits ? 2 * kFewUnits / partials : 1;
    if (splits > segments) splits = segments;
  }

  int64_t tasks() const { return partials * splits; }
  int64_t first_unit(int64_t partial) const { return partial * units / partials; }
  int64_t first_segment(int64_t split) const { return split * segments / splits; }
  int64_t units_from(int64_t unit, int64_t end) const {  // to go through the blocks together
    const int64_t count = together - unit % together;
    return count < end - unit ? count : end - unit;
  }
  int64_t own_group(const SequenceView& view, int64_t group) const { return group / (groups / view.groups); }
  int64_t own_segments(const SequenceView& view) const { return group_segments * (groups / view.groups); }
  int64_t group_of_segment(int64_t segment) const { return segment / group_segments; }
  int64_t first_block(int64_t segment) const {  // within the blocks of all groups
    return group_of_segment(segment) * group_blocks + segment % group_segments * segment_blocks;
  }
  int64_t last_block(int64_t segment) const {
    const int64_t end = first_block(segment) + segment_blocks, limit = (group_of_segment(segment) + 1) * group_blocks;
    return end < limit ? end : limit;
  }
  int64_t first_channel(int64_t block) const {
    if (groups == 1) return block * block_channels;  // a division takes longer than all the rest of it
    return block / group_blocks * group_channels + block % group_blocks * block_channels;
  }
  int64_t rows(int64_t unit, int64_t block) const {  // of W that carry data
    const int64_t of_group = groups == 1 ? block : block % group_blocks;
    const int64_t left = lane_mode ? sequences - unit * W : group_channels - of_group * W;
    return left < W ? left : W;
  }

  // Rows of a view for one unit: channels in channel mode, sequences in lane mode.
  NOINLINE Rows rows_of(const SequenceView& view, int64_t unit) const {
    Rows r;
    if (!view.data) return r;
    if (!lane_mode) return Rows::apart(sequence_offset(view, lanes, unit), view.row_stride);
    r.contiguous = true;
    r.base = sequence_offset(view, lanes, unit * W);
    for (int64_t i = 0; i < W; ++i) {
      const bool is_row = unit * W + i < sequences;
      r.offset[i] = is_row ? sequence_offset(view, lanes, unit * W + i) - r.base : 0;
      r.contiguous = r.contiguous && (r.offset[i] == i || !is_row);
    }
    return r;
  }

  // Index into a (batch, channels, states, lanes) tensor for row i of a block.
  int64_t state_index(int64_t unit, int64_t block, int64_t i, int64_t n, int64_t states) const {
    const int64_t sequence = lane_mode ? unit * W + i : unit, channel = first_channel(block) + (lane_mode ? 0 : i);
    return ((sequence / lanes * channels + channel) * states + n) * lanes + sequence % lanes;
  }

  // (channels, width) parameters as [blocks][padded][W] vectors times a factor; rows without data are zero.
  NOINLINE void pack(const void* source, int64_t width, int64_t padded, Scalar factor, Scalar* packed) const {
    const Scalar* p = static_cast<const Scalar*>(source);
    if (!p || width < padded) memset(packed, 0, size_t(blocks * padded * W) * sizeof(Scalar));
    if (!p) return;
    for (int64_t block = 0; block < blocks; ++block) {
      const Scalar* of_block = p + first_channel(block) * width;
      Scalar* to = packed + block * padded * W;
      if (lane_mode) {
        for (int64_t n = 0; n < width; ++n) Vec(of_block[n] * factor).store(to + n * W);
        continue;
      }
      load_tile(of_block, Rows::apart(0, width), rows(0, block), 1, width, to, W, W);
      for (int64_t n = 0; n < width; ++n) (Vec::load(to + n * W) * factor).store(to + n * W);
    }
  }

  // Sums over sequences live in partial[block][padded][...] with W entries per state in channel mode; in lane mode one,
  // to which a vector's lanes are added, those of four vectors side by side.
  int64_t sum_width() const { return lane_mode ? 1 : W; }
  void fold(Scalar* sums, Vec v) const {
    if (lane_mode)
      *sums += sum_lanes(v);
    else
      (Vec::load(sums) + v).store(sums);
  }
  void fold(Scalar* sums, const Scalar* vectors, int64_t count) const {
    int64_t i = 0;
    for (; lane_mode && i + 4 <= count; i += 4) {
      Scalar parts[kReduceWidth] = {};
      const Scalar* v = vectors + i * W;
      accumulate4(parts, Vec::load(v), Vec::load(v + W), Vec::load(v + 2 * W), Vec::load(v + 3 * W));
      finish4(parts, sums + i, true);
    }
    for (; i < count; ++i) fold(sums + i * sum_width(), Vec::load(vectors + i * W));
  }
  // The sum over partials, in order, into the first; `also` too.
  NOINLINE void add_partials(Scalar* sums, int64_t partial_stride, int64_t padded, const Scalar* also) const {
    const int64_t count = blocks * padded * sum_width();
    const auto add = [&](const Scalar* more) {
      int64_t i = 0;
      for (; i + W <= count; i += W) (Vec::load(sums + i) + Vec::load(more + i)).store(sums + i);
      for (; W > 1 && i < count; ++i) sums[i] += more[i];
    };
    for (int64_t k = 1; k < partials; ++k) add(sums + k * partial_stride);
    if (also) add(also);
  }
  // out[channel][n] = sum over partials, and those of `also` where given. The sums are used up.
  NOINLINE void unfold(Scalar* sums, int64_t partial_stride, int64_t width, int64_t padded, Scalar* also,
                       void* out) const {
    if (also) add_partials(also, partial_stride, padded, nullptr);
    add_partials(sums, partial_stride, padded, also);
    Scalar* const p = static_cast<Scalar*>(out);
    for (int64_t block = 0; block < blocks; ++block) {
      Scalar* const of_block = p + first_channel(block) * width;
      const Scalar* const from = sums + block * padded * sum_width();
      if (lane_mode)
        memcpy(of_block, from, size_t(width) * sizeof(Scalar));
      else
        store_tile(of_block, Rows::apart(0, width), rows(0, block), 1, width, from, W, W, false);
    }
  }
  // The sums of both directions to their gradients, or where the directions share the parameter to the first. A null
  // gradient is not wanted.
  void unfold_directions(Scalar* const* sums, int directions, int64_t partial_stride, int64_t width, int64_t padded,
                         bool shared, void* out0, void* out1) const {
    const bool both = directions == 2;
    if (out0) unfold(sums[0], partial_stride, width, padded, both && shared ? sums[1] : nullptr, out0);
    if (both && !shared && out1) unfold(sums[1], partial_stride, width, padded, nullptr, out1);
  }
};

template <class F>
struct ParallelBody {
  static void call(int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
    finish_streams();
  }
};
template <class F>
INLINE void parallel(ParallelFor run, int64_t count, const F& f) {
  run(count, &ParallelBody<F>::call, const_cast<F*>(&f));
}

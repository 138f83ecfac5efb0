// From a call to parameters and a division of the work; the same for the forward and the backward scan.
#pragma once

#include "cuda/launch.h"
#include "cuda/scan_common.cuh"

namespace ssmvdm::cuda {

enum class Layout { kChannels, kTime, kLanes };  // what is contiguous

// Whether there are just the 16 states of one turn, and B and C change with time, so that no step has to ask.
inline bool is_plain(const ScanArgs& args) {
  bool plain = args.states == kStates;
  for (int d = 0; d < args.directions; ++d) plain = plain && !args.dir[d].B_const && !args.dir[d].C_const;
  return plain;
}

// Whether every row of `view` can be read in whole, aligned chunks along time.
inline bool has_chunks(const SequenceView& view) {
  if (!view.data) return true;
  const int64_t size = view.dtype == DType::kFloat32 ? 4 : 2, lane = view.lane_dims ? view.lane_stride[0] : 0;
  const auto fits = [](int64_t stride) { return stride % kChunk == 0; };
  return view.time_stride == 1 && fits(view.batch_stride) && fits(view.row_stride) && fits(lane) &&
         reinterpret_cast<uintptr_t>(view.data) % uintptr_t(size * kChunk) == 0;
}

inline bool has_chunks(const ScanArgs& args) {
  bool all = args.length % kChunk == 0 && has_chunks(args.z);
  for (int d = 0; d < args.directions; ++d)
    all = all && has_chunks(args.dir[d].u) && has_chunks(args.dir[d].delta) && has_chunks(args.y[d]);
  return all;
}
inline bool has_chunks(const ScanBackwardArgs& args) {
  bool all = has_chunks(static_cast<const ScanArgs&>(args)) && has_chunks(args.dz);
  for (int d = 0; d < args.directions; ++d)
    all = all && has_chunks(args.grad[d].du) && has_chunks(args.grad[d].ddelta) && has_chunks(args.forward_y[d]);
  return all;
}

// Time counts as contiguous only where all rows can be read in chunks; otherwise neighbouring threads are neighbouring
// channels all the same, and read one element at a time.
template <class Args>
Layout layout_of(const Args& args) {
  const SequenceView& u = args.dir[0].u;
  if (u.row_stride == 1 || u.time_stride != 1) return u.row_stride == 1 ? Layout::kChannels : Layout::kLanes;
  return has_chunks(args) ? Layout::kTime : Layout::kChannels;
}

// A tensor in the walking order of a direction.
inline Strided walked(const SequenceView& view, bool reverse, int64_t length) {
  Strided tensor = strided(view);
  if (!reverse || !view.data) return tensor;
  const int64_t size = view.dtype == DType::kFloat32 ? 4 : 2;
  tensor.data = static_cast<char*>(view.data) + (length - 1) * view.time_stride * size;
  tensor.time = -view.time_stride;
  return tensor;
}

inline ScanParams scan_params(const ScanArgs& args) {
  ScanParams p{};
  p.channels = int32_t(args.channels), p.lanes = args.lanes, p.sequences = args.batch * args.lanes;
  p.length = int32_t(args.length), p.states = int32_t(args.states), p.directions = args.directions;
  p.softplus = args.delta_softplus, p.concatenate = args.concatenate, p.scale = float(args.scale);
  for (int d = 0; d < args.directions; ++d) {
    const ScanDirection& x = args.dir[d];
    const auto see = [&](const SequenceView& view) { return walked(view, x.reverse, args.length); };
    const auto floats = [](const void* pointer) { return static_cast<const float*>(pointer); };
    p.dir[d] = {see(x.u),
                see(x.delta),
                see(args.z),
                see(args.y[d]),
                see(x.B),
                see(x.C),
                floats(x.A),
                floats(x.B_const),
                floats(x.C_const),
                floats(x.D),
                floats(x.delta_bias),
                x.B.data ? int32_t(args.groups / x.B.groups) : 1,
                x.C.data ? int32_t(args.groups / x.C.groups) : 1,
                x.reverse};
  }
  p.initial_state = static_cast<const float*>(args.initial_state);
  p.last_state = static_cast<float*>(args.last_state);
  p.group_channels = int32_t(args.channels / args.groups);
  return p;
}

// Channels of a slice: a multiple of `step` up to `most` that leaves the fewest threads without work, the largest such.
inline int32_t slice_width(int64_t channels, int32_t step, int32_t most) {
  int32_t best = step;
  int64_t best_padded = INT64_MAX;
  for (int32_t width = step; width <= most; width += step) {
    const int64_t padded = (channels + width - 1) / width * width;
    if (padded <= best_padded) best = width, best_padded = padded;
  }
  return best;
}

// Divides the units of every slice among at most `blocks` blocks in all, or one for each slice. Returns how many there
// are: one more than a device holds at a time would double the time.
template <class Map>
int64_t divide(ScanParams& p, int64_t groups, int32_t width, int32_t laps, int64_t blocks) {
  p.width = width, p.laps = laps;
  p.group_slices = int32_t((p.group_channels + width * laps - 1) / (width * laps));
  p.slices = int32_t(groups * p.group_slices);
  p.units = (p.sequences + Map::kUnit - 1) / Map::kUnit;
  const int64_t most = blocks < p.slices ? 1 : blocks / p.slices;
  p.unit_step = p.units < most ? p.units : most;
  return p.unit_step * p.slices;
}

}  // namespace ssmvdm::cuda

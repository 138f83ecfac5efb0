// From a call to parameters and a division of the work; the same for the forward and the backward scan.
#pragma once

#include "cuda/launch.h"
#include "cuda/scan_common.cuh"

namespace ssmvdm::cuda {

enum class Layout { kChannels, kTime, kLanes };  // what is contiguous

inline Layout layout_of(const SequenceView& u) {
  if (u.row_stride == 1) return Layout::kChannels;
  return u.time_stride == 1 ? Layout::kTime : Layout::kLanes;
}

// Whether all 16 states of every group of 16 exist and change with time, so that no step has to ask.
inline bool is_plain(const ScanArgs& args) {
  bool plain = args.states % kStates == 0;
  for (int d = 0; d < args.directions; ++d) plain = plain && !args.dir[d].B_const && !args.dir[d].C_const;
  return plain;
}

// Whether every row of `view` can be read in vectors of kVector elements.
inline bool has_vectors(const SequenceView& view) {
  if (!view.data) return true;
  const int64_t size = view.dtype == DType::kFloat32 ? 4 : 2, lane = view.lane_dims ? view.lane_stride[0] : 0;
  const auto fits = [](int64_t stride) { return stride % kVector == 0; };
  return view.time_stride == 1 && fits(view.batch_stride) && fits(view.row_stride) && fits(lane) &&
         reinterpret_cast<uintptr_t>(view.data) % uintptr_t(size * kVector) == 0;
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
  p.channels = args.channels, p.lanes = args.lanes, p.sequences = args.batch * args.lanes;
  p.length = int32_t(args.length), p.states = int32_t(args.states), p.directions = args.directions;
  p.softplus = args.delta_softplus, p.concatenate = args.concatenate, p.scale = float(args.scale);
  p.vectors = args.length % kVector == 0 && has_vectors(args.z);
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
    p.vectors = p.vectors && has_vectors(x.u) && has_vectors(x.delta) && has_vectors(args.y[d]);
  }
  p.initial_state = static_cast<const float*>(args.initial_state);
  p.last_state = static_cast<float*>(args.last_state);
  p.group_channels = args.channels / args.groups;
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

// Divides the units of every slice among about `blocks` blocks in all. Returns how many blocks there are.
template <class Map>
int64_t divide(ScanParams& p, int64_t groups, int32_t width, int32_t laps, int64_t blocks) {
  p.width = width, p.laps = laps;
  p.group_slices = int32_t((p.group_channels + width * laps - 1) / (width * laps));
  p.slices = int32_t(groups * p.group_slices);
  p.units = (p.sequences + Map::kUnit - 1) / Map::kUnit;
  const int64_t least = blocks / p.slices + 1;
  p.unit_step = p.units < least ? p.units : least;
  return p.unit_step * p.slices;
}

inline const char* sentence(cudaError_t status) {
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace ssmvdm::cuda

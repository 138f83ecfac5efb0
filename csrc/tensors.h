// Between torch tensors and the plain views kernels work on; allocation of outputs.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <numeric>

#include "checks.h"
#include "scan_args.h"

namespace ssmvdm {

inline DType dtype_of(const Tensor& t, const char* op, const std::string& name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " must be float32, bfloat16, float16 or float64, but is ",
                      torch::headeronly::toString(t.scalar_type()));
      return DType::kFloat32;
  }
}
inline ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// -- lanes ------------------------------------------------------------------------------------------------------------

// Calls f(size, stride) for every lane axis, those from `first` on, outermost first. Neighbours that are contiguous
// with one another count as one axis.
template <class F>
void for_each_lane_axis(const Tensor& t, int64_t first, const F& f) {
  int64_t size = 1, stride = 0;
  for (int64_t d = first; d < t.dim(); ++d) {
    const int64_t next_size = t.size(d), next_stride = t.stride(d);
    if (next_size == 1) continue;
    if (size != 1 && stride != next_size * next_stride) f(size, stride), size = 1;
    size *= next_size, stride = next_stride;
  }
  if (size != 1) f(size, stride);
}
inline int32_t lane_axes_of(const Tensor& t, int64_t first) {
  int32_t count = 0;
  for_each_lane_axis(t, first, [&](int64_t, int64_t) { ++count; });
  return count;
}

// A (batch, rows, length, *lanes) tensor; with_groups: (batch, groups, rows, length, *lanes). Of kMaxLaneDims lane axes
// at most.
inline SequenceView view_of(const Tensor& t, DType dtype, bool with_groups = false) {
  const int64_t row = with_groups ? 2 : 1;
  SequenceView view{};
  view.data = t.data_ptr();
  view.dtype = dtype;
  view.batch_stride = t.stride(0);
  view.groups = with_groups ? t.size(1) : 1;
  view.group_stride = with_groups ? t.stride(1) : 0;
  view.row_stride = t.stride(row);
  view.time_stride = t.stride(row + 1);
  for_each_lane_axis(t, row + 2, [&](int64_t size, int64_t stride) {
    view.lane_size[view.lane_dims] = size;
    view.lane_stride[view.lane_dims++] = stride;
  });
  return view;
}

// -- allocation -------------------------------------------------------------------------------------------------------

// Large outputs are asked for in large pages where the system leaves that to the program: writing to fresh small pages
// for the first time takes up to a tenth of a backward pass.
inline void advise_large_pages(const Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (!t.is_cpu()) return;
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t end = (begin + uintptr_t(t.numel() * t.element_size())) / kPage * kPage;
  if (end >= first + 2 * kPage) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)t;
#endif
}

inline Tensor empty_strided(const Shape& sizes, const Shape& strides, ScalarType dtype, const Tensor& like) {
  AtenTensorHandle handle;
  const auto device = like.device();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())), device.index(), &handle));
  Tensor t(handle);
  advise_large_pages(t);
  return t;
}

// Dense, with the dimensions in memory in the order of `keys`, largest first; stable among equals.
inline Tensor dense(const Shape& sizes, const Shape& keys, const Tensor& like) {
  const int64_t dims = int64_t(sizes.size());
  std::vector<int64_t> order(dims);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] > keys[b]; });
  Shape strides(dims);
  int64_t step = 1;
  for (int64_t i = dims; i-- > 0; step *= std::max<int64_t>(sizes[order[i]], 1)) strides[order[i]] = step;
  return empty_strided(sizes, strides, like.scalar_type(), like);
}

inline Shape strides_of(const Tensor& t) {
  Shape strides;
  for (int64_t d = 0; d < t.dim(); ++d) strides.push_back(t.stride(d));
  return strides;
}

// Dense, in the order of the strides of `like`: the rule of every sequence output and gradient.
inline Tensor dense_like(const Tensor& like, const Shape& sizes) { return dense(sizes, strides_of(like), like); }
inline Tensor dense_like(const Tensor& like) { return dense_like(like, shape_of(like)); }

// The same as far as it keeps the lanes, the axes from `first` on, together, so that they count as one axis.
inline Tensor dense_with_merged_lanes(const Tensor& like, int64_t first) {
  Shape keys = strides_of(like);
  int64_t least = INT64_MAX;
  for (int64_t d = first; d < like.dim(); ++d)
    if (like.size(d) != 1) least = std::min(least, keys[d]);
  std::fill(keys.begin() + first, keys.end(), least);
  return dense(shape_of(like), keys, like);
}

// Dense, with rows that span as little as they can; its lanes count as one axis too.
inline Tensor dense_with_time_innermost(const Tensor& like, int64_t first_lane) {
  Shape keys(like.dim());
  std::iota(keys.rbegin(), keys.rend(), 1);
  keys[first_lane - 1] = 0;
  return dense(shape_of(like), keys, like);
}

inline Tensor contiguous_empty(const Shape& sizes, ScalarType dtype, const Tensor& like) {
  Shape strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= std::max<int64_t>(sizes[i], 1)) strides[i] = step;
  return empty_strided(sizes, strides, dtype, like);
}
inline Tensor nothing(const Tensor& like) { return contiguous_empty({0}, like.scalar_type(), like); }

inline void fill_zero(Tensor& t) {
  if (t.numel() > 0) torch::stable::zero_(t);
}

}  // namespace ssmvdm

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

// A (batch, rows, length, *lanes) tensor; with_groups: (batch, groups, rows, length, *lanes).
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
  for (int64_t d = row + 2; d < t.dim(); ++d) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 1) continue;
    const int32_t last = view.lane_dims - 1;
    if (last >= 0 && view.lane_stride[last] == size * stride) {
      view.lane_size[last] *= size;
      view.lane_stride[last] = stride;
      continue;
    }
    STD_TORCH_CHECK(view.lane_dims < kMaxLaneDims, "a sequence tensor has more than ", kMaxLaneDims,
                    " lane axes that are not contiguous with one another; call .contiguous() on it");
    view.lane_size[view.lane_dims] = size;
    view.lane_stride[view.lane_dims++] = stride;
  }
  return view;
}

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

// Dense, with the dimensions in memory in the order of the strides of `like`, largest first; stable among equals.
inline Tensor dense_like(const Tensor& like, const Shape& sizes) {
  const int64_t dims = like.dim();
  std::vector<int64_t> order(dims);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return like.stride(a) > like.stride(b); });
  Shape strides(dims);
  int64_t step = 1;
  for (int64_t i = dims; i-- > 0; step *= std::max<int64_t>(sizes[order[i]], 1)) strides[order[i]] = step;
  return empty_strided(sizes, strides, like.scalar_type(), like);
}
inline Tensor dense_like(const Tensor& like) { return dense_like(like, shape_of(like)); }

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

inline void run_parallel(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

enum Direction { kForward, kReverse, kBoth };
enum Merge { kSum, kMean, kCat };

// The part of a scan's arguments that all scans have, from u and the two options, checked.
inline void set_frame(OutputArgs& args, const Tensor& u, int64_t direction, int64_t merge, const char* op) {
  STD_TORCH_CHECK(u.dim() >= 3, op, ": u must have the axes (batch, channels, length, *lanes), but has the shape ",
                  text(shape_of(u)));
  STD_TORCH_CHECK(direction >= kForward && direction <= kBoth, op, ": direction must be 0, 1 or 2, but is ", direction);
  STD_TORCH_CHECK(merge >= kSum && merge <= kCat && (merge == kSum || direction == kBoth), op,
                  ": merge must be 0, or with both directions 0, 1 or 2, but is ", merge);
  args.batch = u.size(0), args.channels = u.size(1), args.length = u.size(2), args.lanes = 1;
  for (int64_t d = 3; d < u.dim(); ++d) args.lanes *= u.size(d);
  args.compute = accumulation_type(u) == ScalarType::Double ? DType::kFloat64 : DType::kFloat32;
  args.directions = direction == kBoth ? 2 : 1;
  args.concatenate = merge == kCat;
  args.scale = merge == kMean ? 0.5 : 1.0;
}

// Outputs y, or dy with the same meaning; with "cat" the reverse direction has the second half of the channels.
inline Shape output_shape(const OutputArgs& args, const Tensor& u) {
  Shape shape = shape_of(u);
  if (args.concatenate) shape[1] *= 2;
  return shape;
}
inline void set_output(const OutputArgs& args, const Tensor& y, SequenceView* views) {
  views[0] = views[1] = view_of(y, dtype_of(y, "scan", "y"));
  if (args.concatenate)
    views[1].data = static_cast<char*>(views[1].data) + args.channels * views[1].row_stride * int64_t(y.element_size());
}

}  // namespace ssmvdm

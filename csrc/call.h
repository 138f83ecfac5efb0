// What all operators have in common: their tensors, checked and described for kernels, and the gradients of those
// tensors.
#pragma once

#include "tensors.h"

namespace ssmvdm {

enum Direction { kForward, kReverse, kBoth };
enum Merge { kSum, kMean, kCat };

// What kernels can take. A tensor with more lane axes, or with rows that span more elements from the first time step to
// the last, is copied; a float64 call of kernels without it is refused.
struct Abilities {
  int32_t lane_axes;
  bool has_float64;
  int64_t row_elements;

  bool can_walk(const Tensor& t, int64_t first_lane) const {
    const int64_t steps = t.size(first_lane - 1), stride = t.stride(first_lane - 1);
    return lane_axes_of(t, first_lane) <= lane_axes && (steps < 2 || stride < row_elements / (steps - 1));
  }
  // An empty tensor like t that kernels can walk; t itself if it is one.
  Tensor walkable(const Tensor& t, int64_t first_lane) const {
    if (can_walk(t, first_lane)) return t;
    const Tensor merged = dense_with_merged_lanes(t, first_lane);
    return can_walk(merged, first_lane) ? merged : dense_with_time_innermost(t, first_lane);
  }
};

// The tensors of a call, in the order of its schema, the first of which sets device and storage type. Keeps what the
// pointers of the description belong to alive.
class Tensors {
 public:
  Tensors(const char* op, const char* const* names, std::initializer_list<Optional> given, Abilities abilities)
      : op(op), names(names), abilities(abilities), tensors_(given), ready_(given) {
    for (size_t i = 0; i < tensors_.size(); ++i)
      if (tensors_[i]) check_device(*tensors_[i], first(), op, names[i]);
    dtype_of(first(), op, names[0]);
    STD_TORCH_CHECK(abilities.has_float64 || first().scalar_type() != ScalarType::Double, op, ": ", names[0],
                    " must be float32, bfloat16 or float16 on ", text(first().device()), ", but is float64");
    STD_TORCH_CHECK(first().dim() >= 3, op, ": ", names[0],
                    " must have the axes (batch, channels, length, *lanes), but has the shape ",
                    text(shape_of(first())));
  }

  const Optional& operator[](int i) const { return tensors_[i]; }
  const Tensor& first() const { return *tensors_[0]; }
  Shape shape() const { return shape_of(first()); }
  int count() const { return int(tensors_.size()); }

  // A (batch, [groups,] rows, length, *lanes) tensor in the storage type. `t` becomes a copy where kernels cannot walk
  // it.
  SequenceView sequence(Tensor& t, const char* name, const Shape& expected, bool with_groups = false) const {
    check_shape(t, expected, op, name);
    check_dtype(t, first().scalar_type(), op, name);
    check_device(t, first(), op, name);
    const int64_t first_lane = with_groups ? 4 : 3;
    Tensor copy = abilities.walkable(t, first_lane);
    if (copy.data_ptr() != t.data_ptr()) torch::stable::copy_(copy, t);
    t = copy;
    return view_of(t, dtype_of(t, op, name), with_groups);
  }
  SequenceView sequence(int i, const Shape& expected, bool with_groups = false) {
    return sequence(*ready_[i], names[i], expected, with_groups);
  }

  // A tensor in the accumulation type; `t` becomes contiguous.
  const void* parameter(Optional& t, const char* name, const Shape& expected) const {
    if (!t) return nullptr;
    check_shape(*t, expected, op, name);
    check_dtype(*t, accumulation_type(first()), op, name);
    check_device(*t, first(), op, name);
    if (!t->is_contiguous()) t = torch::stable::contiguous(*t);
    return t->data_ptr();
  }
  const void* parameter(int i, const Shape& expected) { return parameter(ready_[i], names[i], expected); }

  const char* const op;
  const char* const* const names;
  const Abilities abilities;

 private:
  std::vector<Optional> tensors_, ready_;  // as given; as kernels can take them
};

// The tensors of a computation over time and its direction. A set of arguments has one bit per argument.
struct Frame {
  Tensors tensors;
  const int64_t direction;
  const uint32_t sequences, of_reverse;  // sets: what can be a sequence, and what is for two directions only

  bool is_sequence(int i) const {  // constant B and C have two axes
    return (sequences >> i & 1) && tensors[i]->dim() >= tensors.first().dim();
  }
  bool has_groups(int i) const { return is_sequence(i) && tensors[i]->dim() > tensors.first().dim(); }
  bool is_used(int i) const { return direction == kBoth || !(of_reverse >> i & 1); }
  // Which argument a direction uses: the reverse one its own where it is given.
  int source(int d, int forward, int reverse) const { return d == 1 && tensors[reverse] ? reverse : forward; }

  // The sizes and the arithmetic of a call.
  template <class Args>
  void describe(Args& args) const {
    STD_TORCH_CHECK(direction >= kForward && direction <= kBoth, tensors.op, ": direction must be 0, 1 or 2, but is ",
                    direction);
    const Tensor& first = tensors.first();
    args.batch = first.size(0), args.channels = first.size(1), args.length = first.size(2), args.lanes = 1;
    for (int64_t d = 3; d < first.dim(); ++d) args.lanes *= first.size(d);
    args.compute = accumulation_type(first) == ScalarType::Double ? DType::kFloat64 : DType::kFloat32;
  }
  // And of a scan how its outputs are merged.
  void describe(OutputArgs& args, int64_t merge) const {
    describe(args);
    STD_TORCH_CHECK(merge >= kSum && merge <= kCat && (merge == kSum || direction == kBoth), tensors.op,
                    ": merge must be 0, or with both directions 0, 1 or 2, but is ", merge);
    args.directions = direction == kBoth ? 2 : 1;
    args.concatenate = merge == kCat;
    args.scale = merge == kMean ? 0.5 : 1.0;
  }
};

// Whether there is no sequence, and so nothing to run.
template <class Args>
bool is_empty(const Args& args) {
  return args.batch == 0 || args.channels == 0 || args.lanes == 0;
}

// A tensor that kernels fill: as it is returned or, where they cannot write that, a copy that `finish` moves there.
class Output {
 public:
  Output(const Tensor& result, const Tensor& filled) : result_(result), filled_(filled) {}
  static Output parameter(const Tensor& like, ScalarType accumulation) {
    const Tensor result = contiguous_empty(shape_of(like), like.scalar_type(), like);
    return {result, like.scalar_type() == accumulation ? result : contiguous_empty(shape_of(like), accumulation, like)};
  }
  static Output sequence(const Tensor& like, const Shape& sizes, int64_t first_lane, const Abilities& abilities) {
    const Tensor result = dense_like(like, sizes);
    return {result, abilities.walkable(result, first_lane)};
  }
  static Output none(const Tensor& like) { return {nothing(like), nothing(like)}; }

  SequenceView view(const Tensors& tensors, bool with_groups = false) const {
    return view_of(filled_, dtype_of(filled_, tensors.op, "an output"), with_groups);
  }
  void* data() const { return filled_.data_ptr(); }
  void set_zero() { fill_zero(filled_); }
  Tensor finish() {
    if (filled_.data_ptr() != result_.data_ptr()) torch::stable::copy_(result_, filled_);
    return result_;
  }

 private:
  Tensor result_, filled_;
};

// The shape of y and dy of a scan; with "cat" the reverse direction has the second half of the channels.
inline Shape output_shape(const OutputArgs& args, const Tensors& tensors) {
  Shape shape = tensors.shape();
  if (args.concatenate) shape[1] *= 2;
  return shape;
}
inline Output output(const OutputArgs& args, const Tensors& tensors, bool is_wanted = true) {
  const Tensor& u = tensors.first();
  return is_wanted ? Output::sequence(u, output_shape(args, tensors), 3, tensors.abilities) : Output::none(u);
}
inline void set_output(const OutputArgs& args, const SequenceView& y, SequenceView* views) {
  views[0] = views[1] = y;
  const int64_t size = y.dtype == DType::kFloat64 ? 8 : y.dtype == DType::kFloat32 ? 4 : 2;
  if (args.concatenate) views[1].data = static_cast<char*>(y.data) + args.channels * y.row_stride * size;
}

// Allocates the gradient of each argument whose bit in `needs` is set.
class Gradients {
 public:
  Gradients(const Frame& frame, bool is_call_empty, int64_t needs) : frame_(frame), needs_(needs) {
    const Tensors& tensors = frame.tensors;
    for (int i = 0; i < tensors.count(); ++i) {
      const Optional& t = tensors[i];
      outputs_.push_back(!wanted(i)             ? Output::none(t ? *t : tensors.first())
                         : frame.is_sequence(i) ? Output::sequence(*t, shape_of(*t), first_lane(i), tensors.abilities)
                                                : Output::parameter(*t, accumulation_type(tensors.first())));
      if (wanted(i) && (is_call_empty || !frame.is_used(i))) outputs_.back().set_zero();
    }
  }

  bool wanted(int i) const { return frame_.tensors[i] && (needs_ >> i & 1); }
  void* data(int i) const { return wanted(i) ? outputs_[i].data() : nullptr; }
  SequenceView sequence(int i) const {
    return wanted(i) ? outputs_[i].view(frame_.tensors, frame_.has_groups(i)) : SequenceView{};
  }
  std::vector<Tensor> finish() {
    std::vector<Tensor> tensors;
    for (Output& output : outputs_) tensors.push_back(output.finish());
    return tensors;
  }

 private:
  int64_t first_lane(int i) const { return frame_.has_groups(i) ? 4 : 3; }

  const Frame& frame_;
  const int64_t needs_;
  std::vector<Output> outputs_;
};

}  // namespace ssmvdm

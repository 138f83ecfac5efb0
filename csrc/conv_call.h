// The operators of the depthwise convolution, for any kernels: `Kernels` as in scan_call.h, with conv_forward and
// conv_backward.
#pragma once

#include <tuple>

#include "call.h"

namespace ssmvdm {

// What a call says, checked, with the filters brought to the accumulation type.
class ConvCall : public Frame {
 public:
  enum Argument { X, WEIGHT, BIAS, WEIGHT_B, BIAS_B };
  static constexpr const char* kNames[] = {"x", "weight", "bias", "weight_b", "bias_b"};
  ConvBackwardArgs args{};

  ConvCall(const char* op, std::initializer_list<Optional> given, int64_t direction, bool silu, Abilities abilities)
      : Frame{{op, kNames, given, abilities}, direction, 1 << X, 1 << WEIGHT_B | 1 << BIAS_B} {
    describe(args);
    const Tensor& weight = *tensors[WEIGHT];
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) > 0, op,
                    ": weight must have the shape (channels, width), but has ", text(shape_of(weight)));
    args.width = weight.size(1);
    args.first_direction = direction == kReverse ? 1 : 0;
    args.last_direction = direction == kForward ? 0 : 1;
    args.silu = silu;
    args.x = tensors.sequence(X, tensors.shape());
    for (int d = args.first_direction; d <= args.last_direction; ++d) {
      args.weight[d] = filter(weight_of(d), {args.channels, args.width});
      args.bias[d] = filter(bias_of(d), {args.channels});
    }
  }
  int weight_of(int d) const { return direction == kBoth ? source(d, WEIGHT, WEIGHT_B) : WEIGHT; }
  int bias_of(int d) const { return direction == kBoth ? source(d, BIAS, BIAS_B) : BIAS; }

 private:
  const void* filter(int i, const Shape& shape) {
    if (!tensors[i]) return nullptr;
    const ScalarType storage = tensors.first().scalar_type(), wide = accumulation_type(tensors.first());
    const ScalarType own = tensors[i]->scalar_type();
    STD_TORCH_CHECK(own == storage || own == wide, tensors.op, ": ", kNames[i],
                    " must be float32 or have the dtype of x, but has ", torch::headeronly::toString(own));
    Optional t = own == wide ? *tensors[i] : torch::stable::to(*tensors[i], wide);
    const void* data = tensors.parameter(t, kNames[i], shape);
    filters_.push_back(*t);
    return data;
  }
  std::vector<Tensor> filters_;
};

template <class Kernels>
std::tuple<Tensor, Tensor> conv1d_forward(Tensor x, Tensor weight, Optional bias, Optional weight_b, Optional bias_b,
                                          int64_t direction, bool silu) {
  ConvCall call("conv1d_forward", {x, weight, bias, weight_b, bias_b}, direction, silu, Kernels::kAbilities);
  const auto output = [&](bool is_wanted) {
    return is_wanted ? Output::sequence(x, shape_of(x), 3, Kernels::kAbilities) : Output::none(x);
  };
  Output y[2] = {output(direction != kReverse), output(direction != kForward)};
  if (!is_empty(call.args)) {
    for (int d = call.args.first_direction; d <= call.args.last_direction; ++d)
      call.args.y[d] = y[d].view(call.tensors);
    Kernels::conv_forward(call.tensors, call.args);
  }
  return {y[0].finish(), y[1].finish()};
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv1d_backward(Tensor dy, Tensor dy_b, Tensor x, Tensor weight,
                                                                   Optional bias, Optional weight_b, Optional bias_b,
                                                                   int64_t direction, bool silu, int64_t needs) {
  ConvCall call("conv1d_backward", {x, weight, bias, weight_b, bias_b}, direction, silu, Kernels::kAbilities);
  for (int d = call.args.first_direction; d <= call.args.last_direction; ++d)
    call.args.y[d] = call.tensors.sequence(d ? dy_b : dy, d ? "dy_b" : "dy", call.tensors.shape());
  Gradients gradients(call, is_empty(call.args), needs);
  if (!is_empty(call.args)) {
    call.args.dx = gradients.sequence(ConvCall::X);
    for (int d = call.args.first_direction; d <= call.args.last_direction; ++d) {
      call.args.dweight[d] = gradients.data(call.weight_of(d));
      call.args.dbias[d] = gradients.data(call.bias_of(d));
    }
    Kernels::conv_backward(call.tensors, call.args);
  }
  const std::vector<Tensor> g = gradients.finish();
  return {g[0], g[1], g[2], g[3], g[4]};
}

}  // namespace ssmvdm

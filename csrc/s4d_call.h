// The operators of the S4D scan, for any kernels: `Kernels` as in scan_call.h, with s4d_forward and s4d_backward.
#pragma once

#include <tuple>

#include "call.h"

namespace ssmvdm {

// What a call says, checked, with the parameters made contiguous.
class S4dCall : public Frame {
 public:
  enum Argument { U, DECAY, WEIGHT, D, Z, U_B, DECAY_B, WEIGHT_B, D_B };
  static constexpr const char* kNames[] = {"u", "decay", "weight", "D", "z", "u_b", "decay_b", "weight_b", "D_b"};
  S4dBackwardArgs args{};

  S4dCall(const char* op, std::initializer_list<Optional> given, int64_t direction, int64_t merge, Abilities abilities)
      : Frame{{op, kNames, given, abilities},
              direction,
              1 << U | 1 << Z | 1 << U_B,
              1 << U_B | 1 << DECAY_B | 1 << WEIGHT_B | 1 << D_B} {
    describe(args, merge);
    args.modes = tensors[DECAY]->dim() == 3 ? tensors[DECAY]->size(1) : -1;
    const Shape modes = {args.channels, args.modes, 2};
    for (int d = 0; d < args.directions; ++d) {
      S4dDirection& x = args.dir[d];
      x.reverse = d == 1 || direction == kReverse;
      x.u = tensors.sequence(source(d, U, U_B), tensors.shape());
      x.decay = tensors.parameter(source(d, DECAY, DECAY_B), modes);
      x.weight = tensors.parameter(source(d, WEIGHT, WEIGHT_B), modes);
      x.D = tensors.parameter(source(d, D, D_B), {args.channels});
    }
    if (tensors[Z]) args.z = tensors.sequence(Z, tensors.shape());
  }

  // Points the backward kernel at where gradients go.
  void set_gradients(const Gradients& gradients) {
    const auto data = [&](int i) { return gradients.data(i); };
    args.shared = {!tensors[U_B], !tensors[DECAY_B], !tensors[WEIGHT_B], !tensors[D_B]};
    args.grad[0] = {gradients.sequence(U), data(DECAY), data(WEIGHT), data(D)};
    args.grad[1] = {gradients.sequence(U_B), data(DECAY_B), data(WEIGHT_B), data(D_B)};
    args.dz = gradients.sequence(Z);
  }
};

#define S4D_PARAMETERS                                                                                              \
  Tensor u, Tensor decay, Tensor weight, Optional D, Optional z, Optional u_b, Optional decay_b, Optional weight_b, \
      Optional D_b
#define S4D_TENSORS {u, decay, weight, D, z, u_b, decay_b, weight_b, D_b}

template <class Kernels>
Tensor s4d_forward(S4D_PARAMETERS, int64_t direction, int64_t merge) {
  S4dCall call("s4d_forward", S4D_TENSORS, direction, merge, Kernels::kAbilities);
  Output y = output(call.args, call.tensors);
  if (!is_empty(call.args)) {
    set_output(call.args, y.view(call.tensors), call.args.y);
    Kernels::s4d_forward(call.tensors, call.args);
  }
  return y.finish();
}

template <class Kernels, class T = Tensor>
std::tuple<T, T, T, T, T, T, T, T, T, T> s4d_backward(Tensor dy, S4D_PARAMETERS, int64_t direction, int64_t merge,
                                                      int64_t needs) {
  S4dCall call("s4d_backward", S4D_TENSORS, direction, merge, Kernels::kAbilities);
  set_output(call.args, call.tensors.sequence(dy, "dy", output_shape(call.args, call.tensors)), call.args.y);
  Gradients gradients(call, is_empty(call.args), needs);
  const bool with_y = needs >> call.tensors.count() & 1;
  Output y = output(call.args, call.tensors, with_y);
  if (!is_empty(call.args)) {
    call.set_gradients(gradients);
    if (with_y) set_output(call.args, y.view(call.tensors), call.args.forward_y);
    Kernels::s4d_backward(call.tensors, call.args);
  }
  const std::vector<Tensor> g = gradients.finish();
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], y.finish()};
}

}  // namespace ssmvdm

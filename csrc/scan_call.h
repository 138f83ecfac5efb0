// The operators of the selective scan, for any kernels. `Kernels` has its `Abilities` as kAbilities, and functions
// (call, arguments) that run: scan_forward, scan_backward.
#pragma once

#include <tuple>

#include "call.h"

namespace ssmvdm {

// What a call says, checked, with the small parameters made contiguous.
class ScanCall : public Frame {
 public:
  enum Argument { U, DELTA, A, B, C, D, Z, DELTA_BIAS, U_B, DELTA_B, A_B, B_B, C_B, D_B, DELTA_BIAS_B, INITIAL_STATE };
  static constexpr const char* kNames[] = {"u",
                                           "delta",
                                           "A",
                                           "B",
                                           "C",
                                           "D",
                                           "z",
                                           "delta_bias",
                                           "u_b",
                                           "delta_b",
                                           "A_b",
                                           "B_b",
                                           "C_b",
                                           "D_b",
                                           "delta_bias_b",
                                           "initial_state"};
  ScanBackwardArgs args{};
  Shape state_shape;

  ScanCall(const char* op, std::initializer_list<Optional> given, int64_t direction, int64_t merge, bool softplus,
           Abilities abilities)
      : Frame{{op, kNames, given, abilities}, direction, kSequences, kOfReverse} {
    describe(args, merge);
    STD_TORCH_CHECK(!tensors[INITIAL_STATE] || direction != kBoth, op, ": initial_state needs a single direction");
    args.states = tensors[A]->dim() == 2 ? tensors[A]->size(1) : -1;
    args.delta_softplus = softplus;
    find_groups();
    state_shape = tensors.shape();
    state_shape[2] = args.states;
    for (int d = 0; d < args.directions; ++d) {
      ScanDirection& x = args.dir[d];
      x.reverse = d == 1 || direction == kReverse;
      x.u = tensors.sequence(source(d, U, U_B), tensors.shape());
      x.delta = tensors.sequence(source(d, DELTA, DELTA_B), tensors.shape());
      x.A = tensors.parameter(source(d, A, A_B), {args.channels, args.states});
      modulation(source(d, B, B_B), &x.B, &x.B_const);
      modulation(source(d, C, C_B), &x.C, &x.C_const);
      x.D = tensors.parameter(source(d, D, D_B), {args.channels});
      x.delta_bias = tensors.parameter(source(d, DELTA_BIAS, DELTA_BIAS_B), {args.channels});
    }
    if (tensors[Z]) args.z = tensors.sequence(Z, tensors.shape());
    args.initial_state = tensors.parameter(INITIAL_STATE, state_shape);
  }

  // Points the backward kernel at where gradients go.
  void set_gradients(const Gradients& gradients) {
    args.shared = {!tensors[U_B], !tensors[DELTA_B], !tensors[A_B],         !tensors[B_B],
                   !tensors[C_B], !tensors[D_B],     !tensors[DELTA_BIAS_B]};
    const auto modulation = [&](int i, SequenceView* view, void** constant) {
      if (!gradients.wanted(i)) return;
      if (is_sequence(i))
        *view = gradients.sequence(i);
      else
        *constant = gradients.data(i);
    };
    for (int d = 0; d < args.directions; ++d) {
      ScanGradDirection& g = args.grad[d];
      g.du = gradients.sequence(d ? U_B : U), g.ddelta = gradients.sequence(d ? DELTA_B : DELTA);
      modulation(d ? B_B : B, &g.dB, &g.dB_const), modulation(d ? C_B : C, &g.dC, &g.dC_const);
      g.dA = gradients.data(d ? A_B : A), g.dD = gradients.data(d ? D_B : D);
      g.ddelta_bias = gradients.data(d ? DELTA_BIAS_B : DELTA_BIAS);
    }
    args.dz = gradients.sequence(Z);
    args.dinitial_state = gradients.data(INITIAL_STATE);
  }

 private:
  static constexpr uint32_t kSequences =
      1 << U | 1 << DELTA | 1 << B | 1 << C | 1 << Z | 1 << U_B | 1 << DELTA_B | 1 << B_B | 1 << C_B;
  static constexpr uint32_t kOfReverse =
      1 << U_B | 1 << DELTA_B | 1 << A_B | 1 << B_B | 1 << C_B | 1 << D_B | 1 << DELTA_BIAS_B;

  void find_groups() {
    args.groups = 1;
    for (int i : {B, C, B_B, C_B}) {
      if (!tensors[i] || !has_groups(i)) continue;
      const int64_t groups = tensors[i]->size(1);
      STD_TORCH_CHECK(groups > 0 && args.channels % groups == 0, tensors.op, ": channels (", args.channels,
                      ") must be a multiple of the groups of ", kNames[i], " (", groups, ")");
      args.groups = std::lcm(args.groups, groups);
    }
  }
  void modulation(int i, SequenceView* view, const void** constant) {
    if (!is_sequence(i)) {
      *constant = tensors.parameter(i, {args.channels, args.states});
      return;
    }
    Shape expected = tensors.shape();
    expected[1] = args.states;
    if (has_groups(i)) expected.insert(expected.begin() + 1, tensors[i]->size(1));
    *view = tensors.sequence(i, expected, has_groups(i));
  }
};

#define SCAN_PARAMETERS                                                                                            \
  Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional delta_bias, Optional u_b, \
      Optional delta_b, Optional A_b, Optional B_b, Optional C_b, Optional D_b, Optional delta_bias_b,             \
      Optional initial_state
#define SCAN_TENSORS \
  {u, delta, A, B, C, D, z, delta_bias, u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, initial_state}

template <class Kernels>
std::tuple<Tensor, Tensor> scan_forward(SCAN_PARAMETERS, int64_t direction, int64_t merge, bool delta_softplus,
                                        bool return_last_state) {
  ScanCall call("scan_forward", SCAN_TENSORS, direction, merge, delta_softplus, Kernels::kAbilities);
  STD_TORCH_CHECK(!return_last_state || direction != kBoth, "scan_forward: last_state needs a single direction");
  Output y = output(call.args, call.tensors);
  const Tensor last = return_last_state ? contiguous_empty(call.state_shape, accumulation_type(u), u) : nothing(A);
  if (!is_empty(call.args)) {
    set_output(call.args, y.view(call.tensors), call.args.y);
    if (return_last_state) call.args.last_state = last.data_ptr();
    Kernels::scan_forward(call.tensors, call.args);
  }
  return {y.finish(), last};
}

template <class Kernels, class T = Tensor>
std::tuple<T, T, T, T, T, T, T, T, T, T, T, T, T, T, T, T, T> scan_backward(Tensor dy, Optional dlast_state,
                                                                            SCAN_PARAMETERS, int64_t direction,
                                                                            int64_t merge, bool delta_softplus,
                                                                            int64_t needs) {
  ScanCall call("scan_backward", SCAN_TENSORS, direction, merge, delta_softplus, Kernels::kAbilities);
  set_output(call.args, call.tensors.sequence(dy, "dy", output_shape(call.args, call.tensors)), call.args.y);
  STD_TORCH_CHECK(!dlast_state || direction != kBoth, call.tensors.op, ": dlast_state needs a single direction");
  call.args.dlast_state = call.tensors.parameter(dlast_state, "dlast_state", call.state_shape);
  Gradients gradients(call, is_empty(call.args), needs);
  const bool with_y = needs >> call.tensors.count() & 1;
  Output y = output(call.args, call.tensors, with_y);
  if (!is_empty(call.args)) {
    call.set_gradients(gradients);
    if (with_y) set_output(call.args, y.view(call.tensors), call.args.forward_y);
    Kernels::scan_backward(call.tensors, call.args);
  }
  const std::vector<Tensor> g = gradients.finish();
  return {g[0], g[1],  g[2],  g[3],  g[4],  g[5],  g[6],  g[7],      g[8],
          g[9], g[10], g[11], g[12], g[13], g[14], g[15], y.finish()};
}

}  // namespace ssmvdm

// The CPU kernels behind the operators ssmvdm::s4d_*, bound through the LibTorch stable ABI. Schemas, output shapes and
// derivatives are declared in ssmvdm_kernels/ops_s4d.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/storage.h"
#include "tensors.h"

namespace ssmvdm {
namespace {

using Optional = std::optional<Tensor>;
using T = Tensor;

// The tensors of a call in the order of the schema.
enum Argument { U, DECAY, WEIGHT, D, Z, U_B, DECAY_B, WEIGHT_B, D_B, kArguments };
constexpr const char* kNames[kArguments] = {"u", "decay", "weight", "D", "z", "u_b", "decay_b", "weight_b", "D_b"};

// What a call says, checked, with the parameters made contiguous. Keeps the tensors its pointers belong to alive.
struct Call {
  const char* op;
  Optional tensors[kArguments];
  int64_t direction;
  S4dBackwardArgs args{};

  Call(const char* op_, std::initializer_list<Optional> given, int64_t direction_, int64_t merge)
      : op(op_), direction(direction_) {
    std::copy(given.begin(), given.end(), tensors);
    set_frame(args, *tensors[U], direction, merge, op);
    args.modes = tensors[DECAY]->dim() == 3 ? tensors[DECAY]->size(1) : -1;
    for (int i = 0; i < kArguments; ++i)
      if (tensors[i]) check_cpu(*tensors[i], op, kNames[i]);
    for (int d = 0; d < args.directions; ++d) {
      S4dDirection& x = args.dir[d];
      x.reverse = d == 1 || direction == kReverse;
      x.u = sequence(own(d, U, U_B));
      x.decay = parameter(own(d, DECAY, DECAY_B), {args.channels, args.modes, 2});
      x.weight = parameter(own(d, WEIGHT, WEIGHT_B), {args.channels, args.modes, 2});
      x.D = parameter(own(d, D, D_B), {args.channels});
    }
    if (tensors[Z]) args.z = sequence(Z);
  }
  bool is_empty() const { return args.batch == 0 || args.channels == 0 || args.lanes == 0; }

 private:
  int own(int d, int forward, int reverse) const { return d == 1 && tensors[reverse] ? reverse : forward; }
  SequenceView sequence(int i) const {
    check_shape(*tensors[i], shape_of(*tensors[U]), op, kNames[i]);
    check_dtype(*tensors[i], tensors[U]->scalar_type(), op, kNames[i]);
    return view_of(*tensors[i], dtype_of(*tensors[i], op, kNames[i]));
  }
  const void* parameter(int i, const Shape& expected) {
    if (!tensors[i]) return nullptr;
    check_shape(*tensors[i], expected, op, kNames[i]);
    check_dtype(*tensors[i], accumulation_type(*tensors[U]), op, kNames[i]);
    if (!tensors[i]->is_contiguous()) tensors[i] = torch::stable::contiguous(*tensors[i]);
    return tensors[i]->data_ptr();
  }
};

#define S4D_PARAMETERS                                                                                              \
  Tensor u, Tensor decay, Tensor weight, Optional D, Optional z, Optional u_b, Optional decay_b, Optional weight_b, \
      Optional D_b
#define S4D_TENSORS {u, decay, weight, D, z, u_b, decay_b, weight_b, D_b}

Tensor s4d_forward(S4D_PARAMETERS, int64_t direction, int64_t merge) {
  Call call("s4d_forward", S4D_TENSORS, direction, merge);
  Tensor y = dense_like(u, output_shape(call.args, u));
  if (call.is_empty()) return y;
  set_output(call.args, y, call.args.y);
  cpu_kernels(call.args.compute).s4d_forward(call.args, run_parallel);
  return y;
}

std::tuple<T, T, T, T, T, T, T, T, T, T> s4d_backward(Tensor dy, S4D_PARAMETERS, int64_t direction, int64_t merge,
                                                      int64_t needs) {
  Call call("s4d_backward", S4D_TENSORS, direction, merge);
  S4dBackwardArgs& args = call.args;
  check_shape(dy, output_shape(args, u), call.op, "dy");
  check_dtype(dy, u.scalar_type(), call.op, "dy");
  check_cpu(dy, call.op, "dy");
  std::vector<Tensor> g;
  const auto wanted = [&](int i) { return call.tensors[i] && (needs >> i & 1); };
  for (int i = 0; i < kArguments; ++i) {
    const Optional& t = call.tensors[i];
    const bool is_sequence = i == U || i == Z || i == U_B;
    g.push_back(!wanted(i)    ? nothing(t ? *t : u)
                : is_sequence ? dense_like(*t)
                              : contiguous_empty(shape_of(*t), t->scalar_type(), *t));
    if (wanted(i) && (call.is_empty() || (i >= U_B && direction != kBoth))) fill_zero(g.back());
  }
  const bool with_y = needs >> kArguments & 1;
  g.push_back(with_y ? dense_like(u, output_shape(args, u)) : nothing(u));
  if (!call.is_empty()) {
    const auto data = [&](int i) { return wanted(i) ? g[i].data_ptr() : nullptr; };
    const auto view = [&](int i) {
      return wanted(i) ? view_of(g[i], dtype_of(g[i], call.op, kNames[i])) : SequenceView{};
    };
    args.shared = {!call.tensors[U_B], !call.tensors[DECAY_B], !call.tensors[WEIGHT_B], !call.tensors[D_B]};
    args.grad[0] = {view(U), data(DECAY), data(WEIGHT), data(Argument::D)};
    args.grad[1] = {view(U_B), data(DECAY_B), data(WEIGHT_B), data(D_B)};
    args.dz = view(Z);
    set_output(args, dy, args.y);
    if (with_y) set_output(args, g[kArguments], args.forward_y);
    cpu_kernels(args.compute).s4d_backward(args, run_parallel);
  }
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9]};
}

}  // namespace
}  // namespace ssmvdm

STABLE_TORCH_LIBRARY_IMPL(ssmvdm, CPU, m) {
  m.impl("s4d_forward", TORCH_BOX(&ssmvdm::s4d_forward));
  m.impl("s4d_backward", TORCH_BOX(&ssmvdm::s4d_backward));
}

// The CPU kernels behind the operators ssmvdm::*, bound through the LibTorch stable ABI. Schemas, output shapes and
// derivatives are declared in ssmvdm_kernels/ops.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/storage.h"
#include "tensors.h"

namespace ssmvdm {
namespace {

using Optional = std::optional<Tensor>;

// The tensors of one scan in the order of the schema.
enum Argument {
  U,
  DELTA,
  A,
  B,
  C,
  D,
  Z,
  DELTA_BIAS,
  U_B,
  DELTA_B,
  A_B,
  B_B,
  C_B,
  D_B,
  DELTA_BIAS_B,
  INITIAL_STATE,
  kArguments
};
constexpr const char* kNames[kArguments] = {"u",
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
// What a call says, checked, with the small parameters made contiguous. Keeps the tensors its pointers belong to alive.
struct Call {
  const char* op;
  Optional tensors[kArguments];
  int64_t direction;
  ScanBackwardArgs args{};
  Shape shape, state_shape;

  Call(const char* op_, std::initializer_list<Optional> given, int64_t direction_, int64_t merge, bool softplus)
      : op(op_), direction(direction_) {
    std::copy(given.begin(), given.end(), tensors);
    const Tensor& u = *tensors[U];
    shape = shape_of(u);
    set_frame(args, u, direction, merge, op);
    STD_TORCH_CHECK(!tensors[INITIAL_STATE] || direction != kBoth, op, ": initial_state needs a single direction");
    args.states = tensors[A]->dim() == 2 ? tensors[A]->size(1) : -1;
    args.groups = 1;
    args.delta_softplus = softplus;
    state_shape = {args.batch, args.channels, args.states};
    state_shape.insert(state_shape.end(), shape.begin() + 3, shape.end());
    find_groups();
    for (int i = 0; i < kArguments; ++i)
      if (tensors[i]) check_cpu(*tensors[i], op, kNames[i]);
    for (int d = 0; d < args.directions; ++d) fill_direction(d);
    if (tensors[Z]) args.z = sequence(Z);
    args.initial_state = parameter(INITIAL_STATE, state_shape);
  }

  bool is_empty() const { return args.batch == 0 || args.channels == 0 || args.lanes == 0; }

  Tensor& contiguous(Optional& t) {
    if (!t->is_contiguous()) t = torch::stable::contiguous(*t);
    return *t;
  }
  // Which argument a direction uses: the reverse one its own where it is given.
  int source(int d, Argument forward, Argument reverse) const { return d == 1 && tensors[reverse] ? reverse : forward; }
  bool is_constant(int i) const { return tensors[i]->dim() == 2; }

 private:
  void find_groups() {
    for (int i : {B, C, B_B, C_B}) {
      if (!tensors[i] || tensors[i]->dim() != int64_t(shape.size()) + 1) continue;
      const int64_t groups = tensors[i]->size(1);
      STD_TORCH_CHECK(groups > 0 && args.channels % groups == 0, op, ": channels (", args.channels,
                      ") must be a multiple of the groups of ", kNames[i], " (", groups, ")");
      args.groups = std::lcm(args.groups, groups);
    }
  }

  const void* parameter(int i, const Shape& expected) {
    if (!tensors[i]) return nullptr;
    check_shape(*tensors[i], expected, op, kNames[i]);
    check_dtype(*tensors[i], accumulation_type(*tensors[U]), op, kNames[i]);
    return contiguous(tensors[i]).data_ptr();
  }
  SequenceView sequence(int i) {
    check_shape(*tensors[i], shape, op, kNames[i]);
    check_dtype(*tensors[i], tensors[U]->scalar_type(), op, kNames[i]);
    return view_of(*tensors[i], dtype_of(*tensors[i], op, kNames[i]));
  }
  void states(int i, SequenceView* view, const void** constant) {
    if (is_constant(i)) {
      *constant = parameter(i, {args.channels, args.states});
      return;
    }
    const bool with_groups = tensors[i]->dim() == int64_t(shape.size()) + 1;
    Shape expected = shape;
    expected[1] = args.states;
    if (with_groups) expected.insert(expected.begin() + 1, tensors[i]->size(1));
    check_shape(*tensors[i], expected, op, kNames[i]);
    check_dtype(*tensors[i], tensors[U]->scalar_type(), op, kNames[i]);
    *view = view_of(*tensors[i], dtype_of(*tensors[i], op, kNames[i]), with_groups);
  }
  void fill_direction(int d) {
    ScanDirection& x = args.dir[d];
    x.reverse = d == 1 || direction == kReverse;
    x.u = sequence(source(d, U, U_B));
    x.delta = sequence(source(d, DELTA, DELTA_B));
    x.A = parameter(source(d, A, A_B), {args.channels, args.states});
    states(source(d, B, B_B), &x.B, &x.B_const);
    states(source(d, C, C_B), &x.C, &x.C_const);
    x.D = parameter(source(d, D, D_B), {args.channels});
    x.delta_bias = parameter(source(d, DELTA_BIAS, DELTA_BIAS_B), {args.channels});
  }
};

#define SCAN_PARAMETERS                                                                                            \
  Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional delta_bias, Optional u_b, \
      Optional delta_b, Optional A_b, Optional B_b, Optional C_b, Optional D_b, Optional delta_bias_b,             \
      Optional initial_state
#define SCAN_TENSORS \
  {u, delta, A, B, C, D, z, delta_bias, u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, initial_state}

std::tuple<Tensor, Tensor> scan_forward(SCAN_PARAMETERS, int64_t direction, int64_t merge, bool delta_softplus,
                                        bool return_last_state) {
  Call call("scan_forward", SCAN_TENSORS, direction, merge, delta_softplus);
  STD_TORCH_CHECK(!return_last_state || direction != kBoth, "scan_forward: last_state needs a single direction");
  Tensor y = dense_like(u, output_shape(call.args, u));
  Tensor last = return_last_state ? contiguous_empty(call.state_shape, accumulation_type(u), u) : nothing(A);
  if (call.is_empty()) return {y, last};
  set_output(call.args, y, call.args.y);
  if (return_last_state) call.args.last_state = last.data_ptr();
  cpu_kernels(call.args.compute).scan_forward(call.args, run_parallel);
  return {y, last};
}

// Allocates the gradient of each argument that is asked for and points the kernel at it.
struct Gradients {
  Call& call;
  int64_t needs;
  bool with_y;  // also y of the forward scan, the last tensor
  std::vector<Tensor> tensors;

  Gradients(Call& c, int64_t n) : call(c), needs(n), with_y(n >> kArguments & 1) {
    for (int i = 0; i < kArguments; ++i) {
      const Optional& t = call.tensors[i];
      const bool wanted = t && (needs >> i & 1);
      const bool is_sequence = t && t->dim() >= int64_t(call.shape.size()) && i != INITIAL_STATE;
      tensors.push_back(!wanted       ? nothing(t ? *t : *call.tensors[U])
                        : is_sequence ? dense_like(*t)
                                      : contiguous_empty(shape_of(*t), t->scalar_type(), *t));
      const bool used = i < U_B || i == INITIAL_STATE || call.direction == kBoth;
      if (wanted && (call.is_empty() || !used)) fill_zero(tensors.back());
    }
    tensors.push_back(with_y ? dense_like(*call.tensors[U], output_shape(call.args, *call.tensors[U]))
                             : nothing(*call.tensors[U]));
    ScanBackwardArgs& a = call.args;
    a.shared = {!call.tensors[U_B], !call.tensors[DELTA_B], !call.tensors[A_B],         !call.tensors[B_B],
                !call.tensors[C_B], !call.tensors[D_B],     !call.tensors[DELTA_BIAS_B]};
    for (int d = 0; d < a.directions; ++d) {
      ScanGradDirection& g = a.grad[d];
      g.du = sequence(d ? U_B : U), g.ddelta = sequence(d ? DELTA_B : DELTA);
      states(d ? B_B : B, &g.dB, &g.dB_const), states(d ? C_B : C, &g.dC, &g.dC_const);
      g.dA = data(d ? A_B : A), g.dD = data(d ? D_B : D), g.ddelta_bias = data(d ? DELTA_BIAS_B : DELTA_BIAS);
    }
    a.dz = sequence(Z);
    a.dinitial_state = data(INITIAL_STATE);
  }

 private:
  bool wanted(int i) const { return call.tensors[i] && (needs >> i & 1); }
  void* data(int i) { return wanted(i) ? tensors[i].data_ptr() : nullptr; }
  SequenceView sequence(int i, bool with_groups = false) {
    return wanted(i) ? view_of(tensors[i], dtype_of(tensors[i], call.op, kNames[i]), with_groups) : SequenceView{};
  }
  void states(int i, SequenceView* view, void** constant) {
    if (!wanted(i)) return;
    if (call.is_constant(i))
      *constant = tensors[i].data_ptr();
    else
      *view = sequence(i, tensors[i].dim() == int64_t(call.shape.size()) + 1);
  }
};

using T = Tensor;
std::tuple<T, T, T, T, T, T, T, T, T, T, T, T, T, T, T, T, T> scan_backward(Tensor dy, Optional dlast_state,
                                                                            SCAN_PARAMETERS, int64_t direction,
                                                                            int64_t merge, bool delta_softplus,
                                                                            int64_t needs) {
  Call call("scan_backward", SCAN_TENSORS, direction, merge, delta_softplus);
  check_shape(dy, output_shape(call.args, u), call.op, "dy");
  check_dtype(dy, u.scalar_type(), call.op, "dy");
  check_cpu(dy, call.op, "dy");
  if (dlast_state) {
    STD_TORCH_CHECK(direction != kBoth, call.op, ": dlast_state needs a single direction");
    check_shape(*dlast_state, call.state_shape, call.op, "dlast_state");
    check_dtype(*dlast_state, accumulation_type(u), call.op, "dlast_state");
    check_cpu(*dlast_state, call.op, "dlast_state");
    call.args.dlast_state = call.contiguous(dlast_state).data_ptr();
  }
  Gradients gradients(call, needs);
  if (!call.is_empty()) {
    set_output(call.args, dy, call.args.y);
    if (gradients.with_y) set_output(call.args, gradients.tensors[kArguments], call.args.forward_y);
    cpu_kernels(call.args.compute).scan_backward(call.args, run_parallel);
  }
  const std::vector<Tensor>& g = gradients.tensors;
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15], g[16]};
}

// -- convolution
// -------------------------------------------------------------------------------------------------------

struct ConvCall {
  const char* op;
  ConvBackwardArgs args{};
  Tensor x;
  Optional weight[2], bias[2];  // in the accumulation type
  bool own_weight, own_bias;    // the reverse direction has its own, rather than sharing the forward one's

  ConvCall(const char* op_, const Tensor& x_, const Tensor& w, const Optional& b, const Optional& w_b,
           const Optional& b_b, int64_t direction, bool silu)
      : op(op_), x(x_) {
    STD_TORCH_CHECK(x.dim() >= 3, op, ": x must have the axes (batch, channels, length, *lanes), but has the shape ",
                    text(shape_of(x)));
    STD_TORCH_CHECK(w.dim() == 2 && w.size(1) > 0, op, ": weight must have the shape (channels, width), but has ",
                    text(shape_of(w)));
    STD_TORCH_CHECK(direction >= kForward && direction <= kBoth, op, ": direction must be 0, 1 or 2, but is ",
                    direction);
    args.batch = x.size(0), args.channels = x.size(1), args.length = x.size(2), args.lanes = 1, args.width = w.size(1);
    for (int64_t d = 3; d < x.dim(); ++d) args.lanes *= x.size(d);
    args.first_direction = direction == kReverse ? 1 : 0;
    args.last_direction = direction == kForward ? 0 : 1;
    args.compute = x.scalar_type() == ScalarType::Double ? DType::kFloat64 : DType::kFloat32;
    args.silu = silu;
    check_cpu(x, op, "x");
    args.x = view_of(x, dtype_of(x, op, "x"));
    own_weight = direction == kBoth && w_b, own_bias = direction == kBoth && b_b;
    for (int d = 0; d < 2; ++d) {
      const bool reverse_weight = d == 1 && own_weight, reverse_bias = d == 1 && own_bias;
      weight[d] =
          prepared(reverse_weight ? *w_b : w, {args.channels, args.width}, reverse_weight ? "weight_b" : "weight");
      args.weight[d] = weight[d]->data_ptr();
      if (b || reverse_bias)
        bias[d] = prepared(reverse_bias ? *b_b : *b, {args.channels}, reverse_bias ? "bias_b" : "bias");
      args.bias[d] = bias[d] ? bias[d]->data_ptr() : nullptr;
    }
  }
  bool is_empty() const { return x.numel() == 0 && (args.batch == 0 || args.channels == 0 || args.lanes == 0); }

 private:
  Tensor prepared(const Tensor& t, const Shape& shape, const char* name) {
    check_shape(t, shape, op, name);
    check_cpu(t, op, name);
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() || t.scalar_type() == accumulation_type(x), op, ": ", name,
                    " must be float32 or have the dtype of x");
    Tensor ready = contiguous_empty(shape, accumulation_type(x), x);
    torch::stable::copy_(ready, t);
    return ready;
  }
};

std::tuple<Tensor, Tensor> conv1d_forward(Tensor x, Tensor weight, Optional bias, Optional weight_b, Optional bias_b,
                                          int64_t direction, bool silu) {
  ConvCall call("conv1d_forward", x, weight, bias, weight_b, bias_b, direction, silu);
  Tensor y[2] = {direction == kReverse ? nothing(x) : dense_like(x),
                 direction == kForward ? nothing(x) : dense_like(x)};
  if (!call.is_empty()) {
    for (int d = call.args.first_direction; d <= call.args.last_direction; ++d)
      call.args.y[d] = view_of(y[d], call.args.x.dtype);
    cpu_kernels(call.args.compute).conv_forward(call.args, run_parallel);
  }
  return {y[0], y[1]};
}

std::tuple<T, T, T, T, T> conv1d_backward(Tensor dy, Tensor dy_b, Tensor x, Tensor weight, Optional bias,
                                          Optional weight_b, Optional bias_b, int64_t direction, bool silu,
                                          int64_t needs) {
  ConvCall call("conv1d_backward", x, weight, bias, weight_b, bias_b, direction, silu);
  const Tensor* incoming[2] = {&dy, &dy_b};
  for (int d = call.args.first_direction; d <= call.args.last_direction; ++d) {
    check_shape(*incoming[d], shape_of(x), call.op, d ? "dy_b" : "dy");
    check_dtype(*incoming[d], x.scalar_type(), call.op, d ? "dy_b" : "dy");
    check_cpu(*incoming[d], call.op, d ? "dy_b" : "dy");
    call.args.y[d] = view_of(*incoming[d], call.args.x.dtype);
  }
  const Optional inputs[5] = {x, weight, bias, weight_b, bias_b};
  Optional sums[5];  // gradients in the accumulation type
  std::vector<Tensor> gradients;
  for (int i = 0; i < 5; ++i) {
    const bool wanted = inputs[i] && (needs >> i & 1);
    gradients.push_back(!wanted  ? nothing(inputs[i] ? *inputs[i] : x)
                        : i == 0 ? dense_like(x)
                                 : contiguous_empty(shape_of(*inputs[i]), inputs[i]->scalar_type(), x));
    const bool used = i < 3 || (i == 3 ? call.own_weight : call.own_bias);
    if (wanted && i > 0 && used) sums[i] = contiguous_empty(shape_of(*inputs[i]), accumulation_type(x), x);
    if (wanted && (call.is_empty() || !used)) fill_zero(gradients.back());
  }
  if (!call.is_empty()) {
    if (needs & 1) call.args.dx = view_of(gradients[0], call.args.x.dtype);
    for (int d = call.args.first_direction; d <= call.args.last_direction; ++d) {
      const Optional &dweight = sums[d == 1 && call.own_weight ? 3 : 1], &dbias = sums[d == 1 && call.own_bias ? 4 : 2];
      call.args.dweight[d] = dweight ? dweight->data_ptr() : nullptr;
      call.args.dbias[d] = dbias ? dbias->data_ptr() : nullptr;
    }
    cpu_kernels(call.args.compute).conv_backward(call.args, run_parallel);
    for (int i = 1; i < 5; ++i)
      if (sums[i]) torch::stable::copy_(gradients[i], *sums[i]);
  }
  return {gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]};
}

std::string cpu_capability() { return cpu_kernels(DType::kFloat32).name; }
double cpu_exp2_rate(int64_t vectors) { return cpu_kernels(DType::kFloat32).exp2_rate(vectors); }

}  // namespace
}  // namespace ssmvdm

STABLE_TORCH_LIBRARY_FRAGMENT(ssmvdm, m) {
  m.def("cpu_capability() -> str");
  m.def("cpu_exp2_rate(int vectors) -> float");
}
STABLE_TORCH_LIBRARY_IMPL(ssmvdm, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&ssmvdm::cpu_capability));
  m.impl("cpu_exp2_rate", TORCH_BOX(&ssmvdm::cpu_exp2_rate));
}
STABLE_TORCH_LIBRARY_IMPL(ssmvdm, CPU, m) {
  m.impl("scan_forward", TORCH_BOX(&ssmvdm::scan_forward));
  m.impl("scan_backward", TORCH_BOX(&ssmvdm::scan_backward));
  m.impl("conv1d_forward", TORCH_BOX(&ssmvdm::conv1d_forward));
  m.impl("conv1d_backward", TORCH_BOX(&ssmvdm::conv1d_backward));
}

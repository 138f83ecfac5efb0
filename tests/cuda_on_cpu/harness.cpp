// Calls the launchers of csrc/cuda/launch.h from numpy arrays. A call is a dict whose keys are the members of the
// argument structs; what is missing or None is absent. Arrays of float32, float16 and uint16 (bfloat16) of any strides
// stand for sequences (batch, [groups,] rows, length, lanes), contiguous float32 ones for parameters.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "emulator_control.h"

namespace py = pybind11;
using namespace ssmvdm;

namespace ssmvdm::cuda {
#define SSMVDM_WEAK __attribute__((weak))
SSMVDM_WEAK int64_t scan_forward_workspace(const ScanArgs& args, const Device& device);
SSMVDM_WEAK const char* scan_forward(const ScanArgs& args, const Launch& launch);
SSMVDM_WEAK int64_t scan_backward_workspace(const ScanBackwardArgs& args, const Device& device);
SSMVDM_WEAK const char* scan_backward(const ScanBackwardArgs& args, const Launch& launch);
SSMVDM_WEAK int64_t s4d_forward_workspace(const S4dArgs& args, const Device& device);
SSMVDM_WEAK const char* s4d_forward(const S4dArgs& args, const Launch& launch);
SSMVDM_WEAK int64_t s4d_backward_workspace(const S4dBackwardArgs& args, const Device& device);
SSMVDM_WEAK const char* s4d_backward(const S4dBackwardArgs& args, const Launch& launch);
SSMVDM_WEAK const char* conv_forward(const ConvArgs& args, const Launch& launch);
SSMVDM_WEAK int64_t conv_backward_workspace(const ConvBackwardArgs& args, const Device& device);
SSMVDM_WEAK const char* conv_backward(const ConvBackwardArgs& args, const Launch& launch);
}  // namespace ssmvdm::cuda

namespace {

py::object item(const py::dict& d, const char* name) {
  return d.contains(name) ? py::object(d[name]) : py::object(py::none());
}
template <class T>
T value(const py::dict& d, const char* name) {
  if (!d.contains(name)) throw std::invalid_argument(std::string("the call has no ") + name);
  return d[name].cast<T>();
}

DType dtype_of(const py::array& x) {
  if (x.dtype().is(py::dtype::of<float>())) return DType::kFloat32;
  if (x.dtype().is(py::dtype::of<uint16_t>())) return DType::kBFloat16;
  if (x.dtype().is(py::dtype("float16"))) return DType::kFloat16;
  throw std::invalid_argument("a sequence is an array of float32, float16 or uint16 (bfloat16)");
}

SequenceView sequence(const py::object& object) {
  SequenceView view{};
  if (object.is_none()) return view;
  const auto x = object.cast<py::array>();
  if (x.ndim() != 4 && x.ndim() != 5)
    throw std::invalid_argument("a sequence has the axes (batch, [groups,] rows, length, lanes)");
  const auto stride = [&](int axis) { return int64_t(x.strides(axis)) / int64_t(x.itemsize()); };
  const int row = int(x.ndim()) - 3;
  view.data = const_cast<void*>(x.data());
  view.dtype = dtype_of(x);
  view.batch_stride = stride(0);
  if (row == 2) view.groups = x.shape(1), view.group_stride = stride(1);
  view.row_stride = stride(row), view.time_stride = stride(row + 1);
  if (x.shape(row + 2) != 1)
    view.lane_dims = 1, view.lane_size[0] = x.shape(row + 2), view.lane_stride[0] = stride(row + 2);
  return view;
}
SequenceView sequence(const py::dict& d, const char* name) { return sequence(item(d, name)); }

void* parameter(const py::object& object) {
  if (object.is_none()) return nullptr;
  const auto x = object.cast<py::array>();
  if (!x.dtype().is(py::dtype::of<float>()) || !(x.flags() & py::array::c_style))
    throw std::invalid_argument("a parameter is a contiguous float32 array");
  return const_cast<void*>(x.data());
}
void* parameter(const py::dict& d, const char* name) { return parameter(item(d, name)); }

py::dict of_direction(const py::dict& d, const char* name, int direction) {
  const py::list parts = value<py::list>(d, name);
  return direction < int(py::len(parts)) ? parts[direction].cast<py::dict>() : py::dict();
}
void sequences(const py::dict& d, const char* name, SequenceView* views) {
  const py::object list = item(d, name);
  if (list.is_none()) return;
  for (int i = 0; i < int(py::len(list)); ++i) views[i] = sequence(list[py::int_(i)]);
}
void parameters(const py::dict& d, const char* name, void** pointers) {
  const py::object list = item(d, name);
  if (list.is_none()) return;
  for (int i = 0; i < int(py::len(list)); ++i) pointers[i] = parameter(list[py::int_(i)]);
}

void fill_output(const py::dict& d, OutputArgs& args) {
  args.batch = value<int64_t>(d, "batch"), args.channels = value<int64_t>(d, "channels");
  args.length = value<int64_t>(d, "length"), args.lanes = value<int64_t>(d, "lanes");
  args.directions = value<int32_t>(d, "directions");
  args.compute = DType::kFloat32;
  args.concatenate = value<bool>(d, "concatenate");
  args.scale = value<double>(d, "scale");
  args.z = sequence(d, "z");
  sequences(d, "y", args.y);
}

void fill_scan(const py::dict& d, ScanArgs& args) {
  fill_output(d, args);
  args.states = value<int64_t>(d, "states"), args.groups = value<int64_t>(d, "groups");
  args.delta_softplus = value<bool>(d, "delta_softplus");
  for (int i = 0; i < args.directions; ++i) {
    const py::dict from = of_direction(d, "dir", i);
    ScanDirection& to = args.dir[i];
    to.reverse = value<bool>(from, "reverse");
    to.u = sequence(from, "u"), to.delta = sequence(from, "delta");
    to.B = sequence(from, "B"), to.C = sequence(from, "C");
    to.A = parameter(from, "A"), to.B_const = parameter(from, "B_const"), to.C_const = parameter(from, "C_const");
    to.D = parameter(from, "D"), to.delta_bias = parameter(from, "delta_bias");
  }
  args.initial_state = parameter(d, "initial_state");
  args.last_state = parameter(d, "last_state");
}

void fill_scan_backward(const py::dict& d, ScanBackwardArgs& args) {
  fill_scan(d, args);
  for (int i = 0; i < args.directions; ++i) {
    const py::dict from = of_direction(d, "grad", i);
    ScanGradDirection& to = args.grad[i];
    to.du = sequence(from, "du"), to.ddelta = sequence(from, "ddelta");
    to.dB = sequence(from, "dB"), to.dC = sequence(from, "dC");
    to.dA = parameter(from, "dA"), to.dB_const = parameter(from, "dB_const");
    to.dC_const = parameter(from, "dC_const"), to.dD = parameter(from, "dD");
    to.ddelta_bias = parameter(from, "ddelta_bias");
  }
  const py::dict shared = value<py::dict>(d, "shared");
  const auto is_shared = [&](const char* name) { return value<bool>(shared, name); };
  args.shared = {is_shared("u"), is_shared("delta"), is_shared("A"),         is_shared("B"),
                 is_shared("C"), is_shared("D"),     is_shared("delta_bias")};
  args.dz = sequence(d, "dz");
  sequences(d, "forward_y", args.forward_y);
  args.dlast_state = parameter(d, "dlast_state"), args.dinitial_state = parameter(d, "dinitial_state");
}

void fill_s4d(const py::dict& d, S4dArgs& args) {
  fill_output(d, args);
  args.modes = value<int64_t>(d, "modes");
  for (int i = 0; i < args.directions; ++i) {
    const py::dict from = of_direction(d, "dir", i);
    args.dir[i] = {value<bool>(from, "reverse"), sequence(from, "u"), parameter(from, "decay"),
                   parameter(from, "weight"), parameter(from, "D")};
  }
}

void fill_s4d_backward(const py::dict& d, S4dBackwardArgs& args) {
  fill_s4d(d, args);
  for (int i = 0; i < args.directions; ++i) {
    const py::dict from = of_direction(d, "grad", i);
    args.grad[i] = {sequence(from, "du"), parameter(from, "ddecay"), parameter(from, "dweight"), parameter(from, "dD")};
  }
  const py::dict shared = value<py::dict>(d, "shared");
  args.shared = {value<bool>(shared, "u"), value<bool>(shared, "decay"), value<bool>(shared, "weight"),
                 value<bool>(shared, "D")};
  args.dz = sequence(d, "dz");
  sequences(d, "forward_y", args.forward_y);
}

void fill_conv(const py::dict& d, ConvArgs& args) {
  args.batch = value<int64_t>(d, "batch"), args.channels = value<int64_t>(d, "channels");
  args.length = value<int64_t>(d, "length"), args.lanes = value<int64_t>(d, "lanes");
  args.width = value<int64_t>(d, "width");
  args.first_direction = value<int32_t>(d, "first_direction");
  args.last_direction = value<int32_t>(d, "last_direction");
  args.compute = DType::kFloat32;
  args.silu = value<bool>(d, "silu");
  args.x = sequence(d, "x");
  parameters(d, "weight", const_cast<void**>(args.weight));
  parameters(d, "bias", const_cast<void**>(args.bias));
  sequences(d, "y", args.y);
}

void fill_conv_backward(const py::dict& d, ConvBackwardArgs& args) {
  fill_conv(d, args);
  args.dx = sequence(d, "dx");
  parameters(d, "dweight", args.dweight);
  parameters(d, "dbias", args.dbias);
}

// -- the call ---------------------------------------------------------------------------------------------------------

// Workspace that holds NaN, between fences whose bytes must survive. AddressSanitizer's own guards need no fence.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes) {
    const std::size_t all = (std::size_t(bytes) + 2 * kFence + 255) / 256 * 256;
    memory_ = static_cast<unsigned char*>(kFence ? std::aligned_alloc(256, all) : nullptr);
    if (!kFence && bytes && posix_memalign(reinterpret_cast<void**>(&memory_), 256, std::size_t(bytes)))
      throw std::bad_alloc();
    if (memory_) std::memset(memory_, kFill, kFence ? all : std::size_t(bytes));
  }
  ~Workspace() { std::free(memory_); }
  void* data() const { return memory_ ? memory_ + kFence : nullptr; }
  bool is_fence_intact() const {
    for (std::size_t i = 0; i < kFence; ++i)
      if (memory_[i] != kFill || memory_[kFence + std::size_t(bytes_) + i] != kFill) return false;
    return true;
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kFence = 0;
#else
  static constexpr std::size_t kFence = 4096;
#endif
  static constexpr unsigned char kFill = 0xff;  // NaN in every type
  int64_t bytes_;
  unsigned char* memory_ = nullptr;
};

template <class Args, class Fill, class Bytes>
int64_t run(const py::dict& d, const Fill& fill, const Bytes& workspace_bytes,
            const char* (*start)(const Args&, const cuda::Launch&)) {
  Args args{};
  fill(d, args);
  if (!start) throw std::runtime_error("this kernel is not compiled");
  const cuda::Device device{emulator::settings().multiprocessors, emulator::settings().shared_bytes};
  const int64_t bytes = workspace_bytes(args, device);
  const Workspace workspace(bytes);
  const char* problem = start(args, cuda::Launch{nullptr, device, workspace.data()});
  if (problem) throw std::runtime_error(problem);
  if (!workspace.is_fence_intact()) throw std::runtime_error("memory beside the workspace was written");
  return bytes;
}

}  // namespace

PYBIND11_MODULE(_harness, m) {
  m.def("configure", [](int multiprocessors, int shared_bytes, const std::string& order, uint32_t seed, bool exact) {
    emulator::Settings& s = emulator::settings();
    s.multiprocessors = multiprocessors, s.shared_bytes = shared_bytes, s.seed = seed, s.exact_functions = exact;
    s.order = order == "forward"   ? emulator::Order::kForward
              : order == "reverse" ? emulator::Order::kReverse
                                   : emulator::Order::kRandom;
  });
  m.def("counters", [] {
    const emulator::Counters c = emulator::counters();
    emulator::counters() = {};
    py::dict d;
    d["launches"] = c.launches, d["blocks"] = c.blocks, d["atomics"] = c.atomics;
    d["barriers"] = c.barriers, d["warp_operations"] = c.warp_operations;
    return d;
  });
  // Each returns the bytes of workspace that the call asked for.
#define SSMVDM_LAUNCHER(name, Args, fill) \
  m.def(#name, [](const py::dict& d) { return run<Args>(d, fill, cuda::name##_workspace, cuda::name); })
  SSMVDM_LAUNCHER(scan_forward, ScanArgs, fill_scan);
  SSMVDM_LAUNCHER(scan_backward, ScanBackwardArgs, fill_scan_backward);
  SSMVDM_LAUNCHER(s4d_forward, S4dArgs, fill_s4d);
  SSMVDM_LAUNCHER(s4d_backward, S4dBackwardArgs, fill_s4d_backward);
  SSMVDM_LAUNCHER(conv_backward, ConvBackwardArgs, fill_conv_backward);
  m.def("conv_forward", [](const py::dict& d) {
    const auto none = [](const ConvArgs&, const cuda::Device&) { return int64_t(0); };
    return run<ConvArgs>(d, fill_conv, none, cuda::conv_forward);
  });
}

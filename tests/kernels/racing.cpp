// Calls the CPU kernels from two threads at once, each call on two threads of its own, under ThreadSanitizer. All that
// runs is compiled here: with torch's threads, which are not, nothing could be said. Every call computes the same; two
// that differ are a race as well.
//
//   racing              ends with 0 if all results are equal and nothing raced
//   racing overlapping  both threads of a call take all of its work, which must be reported
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/storage.h"

namespace {

using namespace ssmvdm;

bool overlapping = false;

void run_parallel(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t middle = overlapping ? 0 : count / 2;
  std::thread other(body, middle, count, context);
  if (overlapping || middle) body(0, overlapping ? count : middle, context);
  other.join();
}

// Numbers that are the same for the same seed.
std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> x(count);
  for (float& value : x) seed = seed * 1664525u + 1013904223u, value = float(seed >> 8) * 0x1p-23f - 1.f;
  return x;
}

struct Shape {
  int64_t batch, channels, length, lanes, states;
  bool lanes_inside;  // lanes are contiguous, else channels

  int64_t size(int64_t rows) const { return batch * rows * length * lanes; }
  SequenceView view(std::vector<float>& memory, int64_t rows) const {
    SequenceView v{};
    v.data = memory.data(), v.dtype = DType::kFloat32, v.lane_dims = 1, v.lane_size[0] = lanes;
    v.batch_stride = rows * length * lanes;
    v.row_stride = lanes_inside ? length * lanes : 1, v.time_stride = lanes_inside ? lanes : rows;
    v.lane_stride[0] = lanes_inside ? 1 : rows * length;
    return v;
  }
};

// One bidirectional scan with shared arguments, and all of its gradients.
std::vector<std::vector<float>> scan(const CpuKernels& kernels, const Shape& s) {
  const int64_t rows = s.size(s.channels), modulation = s.size(s.states);
  std::vector<float> u = numbers(rows, 1), delta = numbers(rows, 2), z = numbers(rows, 3), B = numbers(modulation, 4);
  std::vector<float> C = numbers(modulation, 5), A = numbers(s.channels * s.states, 6), D = numbers(s.channels, 7);
  std::vector<float> dy = numbers(rows, 8), bias = numbers(s.channels, 9);
  std::vector<std::vector<float>> out;
  for (int64_t size : {rows, rows, rows, rows, modulation, modulation, s.channels * s.states, s.channels, s.channels})
    out.emplace_back(size);
  ScanBackwardArgs args{};
  args.batch = s.batch, args.channels = s.channels, args.length = s.length, args.lanes = s.lanes;
  args.states = s.states, args.groups = 1, args.directions = 2, args.scale = 1, args.delta_softplus = true;
  args.z = s.view(z, s.channels);
  for (int d = 0; d < kMaxDirections; ++d)
    args.dir[d] = {d == 1,
                   s.view(u, s.channels),
                   s.view(delta, s.channels),
                   s.view(B, s.states),
                   s.view(C, s.states),
                   A.data(),
                   nullptr,
                   nullptr,
                   D.data(),
                   bias.data()};
  args.y[0] = args.y[1] = s.view(out[0], s.channels);
  kernels.scan_forward(args, run_parallel);
  args.y[0] = args.y[1] = s.view(dy, s.channels);
  args.shared = {true, true, true, true, true, true, true};
  args.dz = s.view(out[3], s.channels);
  ScanGradDirection& g = args.grad[0];
  g.du = s.view(out[1], s.channels), g.ddelta = s.view(out[2], s.channels);
  g.dB = s.view(out[4], s.states), g.dC = s.view(out[5], s.states);
  g.dA = out[6].data(), g.dD = out[7].data(), g.ddelta_bias = out[8].data();
  kernels.scan_backward(args, run_parallel);
  return out;
}

// Both directions of a convolution with one filter, and its gradients.
std::vector<std::vector<float>> convolve(const CpuKernels& kernels, const Shape& s) {
  const int64_t rows = s.size(s.channels), width = 4;
  std::vector<float> x = numbers(rows, 1), weight = numbers(s.channels * width, 2), bias = numbers(s.channels, 3);
  std::vector<float> dy = numbers(rows, 4);
  std::vector<std::vector<float>> out;
  for (int64_t size : {rows, rows, rows, s.channels * width, s.channels}) out.emplace_back(size);
  ConvBackwardArgs args{};
  args.batch = s.batch, args.channels = s.channels, args.length = s.length, args.lanes = s.lanes, args.width = width;
  args.last_direction = 1, args.silu = true;
  args.x = s.view(x, s.channels);
  for (int d = 0; d < kMaxDirections; ++d) {
    args.weight[d] = weight.data(), args.bias[d] = bias.data();
    args.y[d] = s.view(out[d], s.channels);
  }
  kernels.conv_forward(args, run_parallel);
  for (int d = 0; d < kMaxDirections; ++d) {
    args.y[d] = s.view(dy, s.channels);
    args.dweight[d] = out[3].data(), args.dbias[d] = out[4].data();
  }
  args.dx = s.view(out[2], s.channels);
  kernels.conv_backward(args, run_parallel);
  return out;
}

}  // namespace

int main(int count, char** arguments) {
  overlapping = count > 1 && std::strcmp(arguments[1], "overlapping") == 0;
  const Shape shapes[] = {
      {3, 6, 7, 5, 4, true}, {3, 19, 7, 5, 3, false}, {1, 70, 9, 1, 4, false}, {1, 5, 3, 70, 2, true}};
  int wrong = 0;
  for (const Shape& shape : shapes)
    for (auto call : {scan, convolve}) {
      std::vector<std::vector<float>> mine, other;
      std::thread thread([&] { other = call(kCpuBaseline, shape); });
      mine = call(kCpuBaseline, shape);
      thread.join();
      for (size_t i = 0; i < mine.size(); ++i)
        wrong += std::memcmp(mine[i].data(), other[i].data(), mine[i].size() * sizeof(float)) != 0;
    }
  if (wrong) std::fprintf(stderr, "%d results differ\n", wrong);
  return wrong && !overlapping;
}

// What the forward and the backward pass of S4D share: a pass of the operator over tensors, in two forms.
//
//   direct       over few steps the convolution that the recurrence stands for, y_t = sum_l k_l u_{t-l} with the taps
//                k_l = 2 Re sum_n weight_n decay_n^l, and D added to k_0: about L / 2 multiply-adds per element and
//                direction, whatever the modes
//   recurrence   h_t = decay h_{t-1} + u_t: six per element, mode and direction
//
// The gradient of u is the same operator on the gradient of y, running the other way, so the backward pass takes the
// pass up to twice: for du, and where dz is wanted for y.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/launch.h"

namespace ssmvdm::cuda {

constexpr int kBlock = 16;                               // steps that a thread computes at once
constexpr int kModeBytes = kWarp * int(sizeof(float2));  // of shared memory: the state of a mode while a warp walks

// By what forward and backward need together. Both decide alike, so that y computed again is y to the last bit.
inline bool is_direct(const S4dArgs& args, const Device& device) {
  const bool is_short = args.length + 8 <= 12 * args.modes, fits = args.modes * kModeBytes <= device.shared_bytes;
  return args.length > 0 && (is_short || !fits);
}
inline int64_t blocks_of(int64_t length) { return (length + kBlock - 1) / kBlock; }

// A sequence that is read: of the storage type, or float32 scratch memory.
struct Input {
  Track track;
  bool is_float;
};

// y = (sum over directions) scale silu(z), or an output for each direction where they are concatenated.
struct S4dPass {
  Columns columns;
  int64_t length, modes;
  int32_t directions;
  bool concatenate;
  float scale;
  Input in[kMaxDirections];
  bool reverse[kMaxDirections];
  const float* coefficients[kMaxDirections];  // of each direction, as S4dCoefficients says
  const float* D[kMaxDirections];             // (channels,) or null
  Track out[kMaxDirections], z;               // absent: not wanted, no gate
  Track dy[kMaxDirections], dz;               // dz = sum over outputs of dy y / silu(z) silu'(z), where wanted
  Track unfinished;                           // what the first direction leaves for the second, for recurrences

  // Whether anything is made of direction d.
  __device__ bool wants(int d) const { return !concatenate || out[d] || dz; }
};

// Parameters as the pass reads them. direct: taps [direction][group][16 ceil(length / 16)][width], with zeros after the
// last; else float4 [direction][group][mode][width] of the parts of decay and of twice the weight.
struct S4dCoefficients {
  Columns columns;
  int64_t length, modes;
  int32_t directions;
  bool direct;
  const float *decay[kMaxDirections], *weight[kMaxDirections], *D[kMaxDirections];
  float* packed;

  // Floats of one direction.
  __host__ __device__ int64_t size() const {
    return columns.groups * columns.width() * (direct ? (length + kBlock - 1) / kBlock * kBlock : 4 * modes);
  }
};
inline S4dCoefficients coefficients_of(const S4dArgs& args, const Columns& columns, bool direct, void* packed) {
  S4dCoefficients c{columns, args.length, args.modes, args.directions, direct, {}, {}, {}, static_cast<float*>(packed)};
  for (int d = 0; d < args.directions; ++d) {
    c.decay[d] = static_cast<const float*>(args.dir[d].decay);
    c.weight[d] = static_cast<const float*>(args.dir[d].weight);
    c.D[d] = static_cast<const float*>(args.dir[d].D);
  }
  return c;
}

// The frame of a pass with the parameters of `args`; tensors are the caller's to add.
inline S4dPass pass_of(const S4dArgs& args, const S4dCoefficients& c) {
  S4dPass p{};
  p.columns = c.columns, p.length = args.length, p.modes = args.modes;
  p.directions = args.directions, p.concatenate = args.concatenate, p.scale = float(args.scale);
  for (int d = 0; d < args.directions; ++d)
    p.reverse[d] = args.dir[d].reverse, p.coefficients[d] = c.packed + d * c.size(), p.D[d] = c.D[d];
  return p;
}

// Defined beside the forward pass.
cudaError_t pack_s4d(const S4dCoefficients& c, cudaStream_t stream);
cudaError_t run_s4d(const S4dPass& p, DType storage, bool direct, cudaStream_t stream);

// -- on the device ----------------------------------------------------------------------------------------------------

struct Complex {
  float re, im;
};
__device__ inline Complex operator*(Complex a, Complex b) {
  return {fmaf(-a.im, b.im, a.re * b.re), fmaf(a.im, b.re, a.re * b.im)};
}
// (channels, modes, 2)
__device__ inline Complex mode_of(const float* parameter, int64_t modes, int64_t channel, int64_t mode) {
  const float2 value = reinterpret_cast<const float2*>(parameter)[channel * modes + mode];
  return {value.x, value.y};
}

// One column of an Input.
template <class T>
struct Reader {
  Walk<float> wide;
  bool is_float;

  __device__ Reader(const Input& input, const Column& c)
      : wide(input.is_float ? Walk<float>(input.track, c) : Walk<T>(input.track, c).template as<float>()),
        is_float(input.is_float) {}
  __device__ void load(int64_t t, int64_t length, float* x) const {
    if (is_float)
      wide.load(t, length, x);
    else
      wide.template as<T>().load(t, length, x);
  }
};

}  // namespace ssmvdm::cuda

// Plain descriptions of tensors and calls, shared by every kernel. No torch here.
#pragma once

#include <cstdint>

namespace ssmvdm {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int kMaxLaneDims = 6;
constexpr int kMaxDirections = 2;

// A (batch, rows, length, *lanes) tensor of any strides; rows are channels, or states of one group. Strides count
// elements. Lane axes are listed outermost first, already merged where they are contiguous with one another.
struct SequenceView {
  void* data;
  DType dtype;
  int64_t batch_stride, row_stride, time_stride;
  int64_t groups = 1, group_stride;  // of B and C
  int32_t lane_dims;
  int64_t lane_size[kMaxLaneDims], lane_stride[kMaxLaneDims];
};

// What all scans have in common: sizes, and what becomes of the sums y_f and y_b of the directions.
struct OutputArgs {
  int64_t batch, channels, length, lanes;
  int32_t directions;
  DType compute;     // kFloat32 or kFloat64, the accumulation type
  bool concatenate;  // each direction has its own output y[d]; otherwise their sum goes to y[0]
  double scale;      // of the outputs
  SequenceView z;    // outputs are multiplied with silu(z); data null if absent
  SequenceView y[kMaxDirections];
};

// What one direction of the selective scan reads. "Accumulation type": float, or double for float64 tensors.
struct ScanDirection {
  bool reverse;                   // time runs length-1 .. 0
  SequenceView u, delta;          // (batch, channels, length, *lanes)
  SequenceView B, C;              // (batch, groups, states, length, *lanes), unless constant in time
  const void* A;                  // (channels, states), accumulation type, contiguous
  const void *B_const, *C_const;  // (channels, states) or null
  const void *D, *delta_bias;     // (channels,) or null
};

// h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t, y_t = <C_t, h_t> + D u_t.
struct ScanArgs : OutputArgs {
  int64_t states;
  int64_t groups;  // the least common multiple of those of all B and C
  bool delta_softplus;
  ScanDirection dir[kMaxDirections];
  const void* initial_state;  // (batch, channels, states, lanes) contiguous or null; one direction only
  void* last_state;           // the same, or null
};

// Gradients of one direction; a null pointer (data null in a view) is not wanted. Where the reverse direction shares an
// argument with the forward one, its entry is null here and `shared` below says that both parts are added up.
struct ScanGradDirection {
  SequenceView du, ddelta, dB, dC;
  void *dA, *dB_const, *dC_const, *dD, *ddelta_bias;
};

struct ScanBackwardArgs : ScanArgs {  // y[] holds the incoming gradients dy
  ScanGradDirection grad[kMaxDirections];
  struct {
    bool u, delta, A, B, C, D, delta_bias;
  } shared;
  SequenceView dz;
  SequenceView forward_y[kMaxDirections];  // where to put y of the forward scan, computed again anyway; null: nowhere
  const void* dlast_state;
  void* dinitial_state;
};

// h_t = decay h_{t-1} + u_t, y_t = 2 Re <weight, h_t> + D u_t; decay, weight and h are complex, (channels, modes, 2).
struct S4dDirection {
  bool reverse;
  SequenceView u;
  const void *decay, *weight;  // accumulation type, contiguous
  const void* D;               // (channels,) or null
};
struct S4dArgs : OutputArgs {
  int64_t modes;
  S4dDirection dir[kMaxDirections];
};
struct S4dGradDirection {
  SequenceView du;
  void *ddecay, *dweight, *dD;
};
struct S4dBackwardArgs : S4dArgs {  // y[] holds dy; otherwise as ScanBackwardArgs
  S4dGradDirection grad[kMaxDirections];
  struct {
    bool u, decay, weight, D;
  } shared;
  SequenceView dz;
  SequenceView forward_y[kMaxDirections];
};

// Depthwise convolution; direction 0 is causal, direction 1 anti-causal.
struct ConvArgs {
  int64_t batch, channels, length, lanes, width;
  int32_t first_direction, last_direction;  // inclusive
  DType compute;
  bool silu;
  SequenceView x;
  const void* weight[kMaxDirections];  // (channels, width), accumulation type, contiguous
  const void* bias[kMaxDirections];    // (channels,) or null
  SequenceView y[kMaxDirections];
};

struct ConvBackwardArgs : ConvArgs {  // y[] holds dy
  SequenceView dx;
  void *dweight[kMaxDirections], *dbias[kMaxDirections];  // null if not wanted
};

// How kernels get threads: body(begin, end, context) over disjoint ranges that cover [0, count).
using ParallelFor = void (*)(int64_t count, void (*body)(int64_t, int64_t, void*), void* context);

}  // namespace ssmvdm

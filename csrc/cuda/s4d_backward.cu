// Gradients of S4D. With g = dy silu(z), which is computed once where there is a gate,
//
//   du  the operator itself on g, running the other way (s4d_common.cuh)
//   dz  dy silu'(z) y, for which y is computed again
//
// and the parameters' gradients by the form of the call:
//
//   direct      dk_l = sum_t g_t u_{t-l} of each channel, one multiply-add per element and lag; then, once per call,
//               dweight = sum_l 2 dk_l conj(decay^l), ddecay = conj(weight) sum_l 2 l dk_l conj(decay^(l-1)), dD = dk_0
//   recurrence  the slope of the state m_t = dh_t / ddecay obeys m_t = decay m_{t-1} + h_{t-1}, so all sums run along
//               with h and no state is kept, twelve multiply-adds per element and mode:
//               dweight = 2 conj(sum_t g_t h_t), ddecay = 2 conj(weight sum_t g_t m_t), dD = sum_t g_t u_t
//
// A warp keeps the sums of 16 lags, or of 4 modes, in registers while it goes through its units, and leaves a partial
// sum; partial sums are added in order.
#include "cuda/partial_sums.cuh"
#include "cuda/s4d_common.cuh"

namespace ssmvdm::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kModes = 4;               // whose sums a warp keeps
constexpr int kModeSums = 4;            // of a mode: sum g h, sum g m, real and imaginary
constexpr int64_t kWarpsAtWork = 8192;  // on sums, about

struct S4dSums {
  Columns columns;
  int64_t length, modes, rows;  // rows of numbers of a channel and direction
  int64_t slots;                // warps that share what a channel sums up
  int64_t parts;                // of the units
  int32_t directions;
  Input u[kMaxDirections], g[kMaxDirections];
  bool reverse[kMaxDirections];
  const float* decay[kMaxDirections];
  float* sums;  // (parts, directions, rows, channels)
};

// What one warp sums up: a slot of one direction of one group over the units of a part.
struct SumJob {
  int64_t slot, group, part;
  int d;

  __device__ SumJob(const S4dSums& p, int64_t job) {
    slot = job % p.slots, job /= p.slots;
    group = job % p.columns.groups, job /= p.columns.groups;
    d = int(job % p.directions), part = job / p.directions;
  }
  __device__ void put(const S4dSums& p, int64_t row, float sum) const {
    const int thread = int(threadIdx.x) % kWarp;
    if (p.columns.over_lanes) {
#pragma unroll
      for (int apart = kWarp / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    }
    const int64_t channel = p.columns.over_lanes ? group : group * kWarp + thread;
    if (row < p.rows && channel < p.columns.channels && (thread == 0 || !p.columns.over_lanes))
      p.sums[((part * p.directions + d) * p.rows + row) * p.columns.channels + channel] = sum;
  }
};
template <class Body>
__device__ void for_sum_jobs(const S4dSums& p, const Body& body) {
  const int64_t jobs = p.slots * p.columns.groups * p.directions * p.parts, stride = int64_t(gridDim.x) * kWarps;
  for (int64_t job = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp; job < jobs; job += stride)
    body(SumJob(p, job));
}

// g = dy silu(z), as float32.
struct S4dGate {
  Columns columns;
  int64_t length;
  Track dy, z, g;
};
template <class T>
__global__ void __launch_bounds__(kThreads) s4d_gate_kernel(const __grid_constant__ S4dGate p) {
  const int64_t jobs = p.columns.groups * p.columns.units, stride = int64_t(gridDim.x) * kWarps;
  for (int64_t job = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp; job < jobs; job += stride) {
    const Column c = column_of_job(p.columns, job);
    if (!c.exists) continue;
    const Walk<T> dy(p.dy, c), z(p.z, c);
    const Walk<float> g(p.g, c);
    for (int64_t t = 0; t < p.length; t += kChunk) {
      float x[kChunk], gate[kChunk];
      dy.load(t, p.length, x);
      z.load(t, p.length, gate);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) x[i] *= silu(gate[i]);
      g.store(t, p.length, x);
    }
  }
}

// -- direct -----------------------------------------------------------------------------------------------------------

// dk of 16 lags. With A = u and B = g, or for the reverse direction the other way round, dk_l = sum_q A_q B_{q+l}.
template <class T>
__global__ void __launch_bounds__(kThreads) s4d_tap_sums_kernel(const __grid_constant__ S4dSums p) {
  for_sum_jobs(p, [&](const SumJob& job) {
    const int64_t lag = job.slot * kBlock;
    float sum[kBlock] = {};
    for (int64_t unit = job.part; unit < p.columns.units; unit += p.parts) {
      const Column c = column_of(p.columns, job.group, unit);
      if (!c.exists) continue;
      const Reader<T> A(p.reverse[job.d] ? p.g[job.d] : p.u[job.d], c),
          B(p.reverse[job.d] ? p.u[job.d] : p.g[job.d], c);
      float b[kBlock + kChunk];  // from q + lag on
      B.load(lag, p.length, b);
      B.load(lag + kChunk, p.length, b + kChunk);
#pragma unroll 2  // or what stays of b would be moved from register to register
      for (int64_t q = 0; q + lag < p.length; q += kChunk) {
        float a[kChunk];
        A.load(q, p.length, a);
        B.load(q + lag + kBlock, p.length, b + kBlock);
#pragma unroll
        for (int i = 0; i < kChunk; ++i)
#pragma unroll
          for (int j = 0; j < kBlock; ++j) sum[j] = fmaf(a[i], b[i + j], sum[j]);
#pragma unroll
        for (int i = 0; i < kBlock; ++i) b[i] = b[i + kChunk];
      }
    }
#pragma unroll
    for (int j = 0; j < kBlock; ++j) job.put(p, lag + j, sum[j]);
  });
}

// -- recurrence -------------------------------------------------------------------------------------------------------

struct ModeSums {
  Complex decay, h, slope, of_h, of_slope;

  __device__ void step(float u, float g) {
    const Complex before = h;
    slope = {fmaf(-decay.im, slope.im, fmaf(decay.re, slope.re, before.re)),
             fmaf(decay.im, slope.re, fmaf(decay.re, slope.im, before.im))};
    h = {fmaf(-decay.im, before.im, fmaf(decay.re, before.re, u)), fmaf(decay.re, before.im, decay.im * before.re)};
    of_h = {fmaf(g, h.re, of_h.re), fmaf(g, h.im, of_h.im)};
    of_slope = {fmaf(g, slope.re, of_slope.re), fmaf(g, slope.im, of_slope.im)};
  }
};

// Rows: four of each mode, and the last one for dD, which the first slot sums up.
template <class T>
__global__ void __launch_bounds__(kThreads) s4d_mode_sums_kernel(const __grid_constant__ S4dSums p) {
  for_sum_jobs(p, [&](const SumJob& job) {
    const int64_t first = job.slot * kModes;
    const bool reverse = p.reverse[job.d];
    ModeSums modes[kModes] = {};
    float of_u = 0.f;
    for (int64_t unit = job.part; unit < p.columns.units; unit += p.parts) {
      const Column c = column_of(p.columns, job.group, unit);
      if (!c.exists) continue;
#pragma unroll
      for (int n = 0; n < kModes; ++n) {
        modes[n].h = modes[n].slope = {};
        if (first + n < p.modes) modes[n].decay = mode_of(p.decay[job.d], p.modes, c.channel, first + n);
      }
      const Reader<T> u(p.u[job.d], c), g(p.g[job.d], c);
      const int64_t chunks = (p.length + kChunk - 1) / kChunk;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t t = (reverse ? chunks - 1 - chunk : chunk) * kChunk;
        float u_at[kChunk], g_at[kChunk];
        u.load(t, p.length, u_at);
        g.load(t, p.length, g_at);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          const float u_i = reverse ? u_at[kChunk - 1 - i] : u_at[i], g_i = reverse ? g_at[kChunk - 1 - i] : g_at[i];
          of_u = fmaf(g_i, u_i, of_u);
#pragma unroll
          for (int n = 0; n < kModes; ++n) modes[n].step(u_i, g_i);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kModes; ++n) {
      const float sums[kModeSums] = {modes[n].of_h.re, modes[n].of_h.im, modes[n].of_slope.re, modes[n].of_slope.im};
      const int64_t row = first + n < p.modes ? (first + n) * kModeSums : p.rows;
#pragma unroll
      for (int i = 0; i < kModeSums; ++i) job.put(p, row + i, sums[i]);
    }
    job.put(p, first == 0 ? p.rows - 1 : p.rows, of_u);
  });
}

// -- parameters -------------------------------------------------------------------------------------------------------

struct S4dTotals {
  int64_t count, parts;
  const float* sums;
  float* totals;
};
__global__ void __launch_bounds__(32 * kSlices) s4d_totals_kernel(const __grid_constant__ S4dTotals p) {
  sum_parts(
      p.count, p.parts, [&](int64_t index, int64_t part) { return p.sums[part * p.count + index]; },
      [&](int64_t index, float sum) { p.totals[index] = sum; });
}

struct S4dParameters {
  int64_t channels, length, modes, rows;
  int32_t directions;
  bool direct, shares_decay, shares_weight, shares_D;
  float scale;
  const float *decay[kMaxDirections], *weight[kMaxDirections];
  const float* totals;  // (directions, rows, channels)
  float *ddecay[kMaxDirections], *dweight[kMaxDirections], *dD[kMaxDirections];

  __device__ float total(int d, int64_t row, int64_t channel) const {
    return totals[(d * rows + row) * channels + channel] * scale;
  }
};

struct ModeGradient {
  Complex decay, weight;
};
__device__ inline Complex conjugate(Complex a) { return {a.re, -a.im}; }
__device__ inline Complex twice(Complex a) { return {a.re + a.re, a.im + a.im}; }

__device__ inline ModeGradient from_taps(const S4dParameters& p, int d, int64_t channel, int64_t mode) {
  const Complex decay = mode_of(p.decay[d], p.modes, channel, mode);
  Complex power = {1.f, 0.f}, of_weight{}, of_decay{};
  float tap = p.total(d, 0, channel);
  for (int64_t l = 0; l < p.length; ++l) {
    const float next = l + 1 < p.length ? p.total(d, l + 1, channel) : 0.f, slope = next * float(l + 1);
    of_weight = {fmaf(tap, power.re, of_weight.re), fmaf(tap, power.im, of_weight.im)};
    of_decay = {fmaf(slope, power.re, of_decay.re), fmaf(slope, power.im, of_decay.im)};
    power = power * decay;
    tap = next;
  }
  const Complex weight = mode_of(p.weight[d], p.modes, channel, mode);
  return {twice(conjugate(weight * of_decay)), twice(conjugate(of_weight))};
}
__device__ inline ModeGradient from_sums(const S4dParameters& p, int d, int64_t channel, int64_t mode) {
  const auto complex = [&](int64_t row) { return Complex{p.total(d, row, channel), p.total(d, row + 1, channel)}; };
  const Complex weight = mode_of(p.weight[d], p.modes, channel, mode);
  return {twice(conjugate(weight * complex(mode * kModeSums + 2))), twice(conjugate(complex(mode * kModeSums)))};
}

__global__ void __launch_bounds__(kThreads) s4d_parameters_kernel(const __grid_constant__ S4dParameters p) {
  const int64_t each = p.modes + 1, stride = int64_t(gridDim.x) * kThreads;  // the last one of a channel: D
  // A gradient, or where both directions share the parameter the sum of both.
  const auto put = [&](float* const* out, bool is_shared, int64_t index, Complex first, Complex second) {
    const auto store = [&](float* to, Complex x) {
      if (to) reinterpret_cast<float2*>(to)[index] = make_float2(x.re, x.im);
    };
    store(out[0], is_shared ? Complex{first.re + second.re, first.im + second.im} : first);
    if (!is_shared) store(out[1], second);
  };
  for (int64_t i = int64_t(blockIdx.x) * kThreads + int(threadIdx.x); i < p.channels * each; i += stride) {
    const int64_t channel = i / each, mode = i % each;
    if (mode == p.modes) {
      const int64_t row = p.direct ? 0 : p.rows - 1;
      const float first = p.total(0, row, channel), second = p.directions == 2 ? p.total(1, row, channel) : 0.f;
      if (p.dD[0]) p.dD[0][channel] = p.shares_D ? first + second : first;
      if (p.dD[1] && !p.shares_D) p.dD[1][channel] = second;
      continue;
    }
    ModeGradient gradient[kMaxDirections] = {};
#pragma unroll
    for (int d = 0; d < kMaxDirections; ++d)
      if (d < p.directions) gradient[d] = p.direct ? from_taps(p, d, channel, mode) : from_sums(p, d, channel, mode);
    const int64_t index = channel * p.modes + mode;
    put(p.ddecay, p.shares_decay, index, gradient[0].decay, gradient[1].decay);
    put(p.dweight, p.shares_weight, index, gradient[0].weight, gradient[1].weight);
  }
}

// -- division of a call -----------------------------------------------------------------------------------------------

bool wants_parameters(const S4dBackwardArgs& args) {
  bool wants = false;
  for (const S4dGradDirection& grad : args.grad) wants = wants || grad.ddecay || grad.dweight || grad.dD;
  return wants;
}

// A call and where its scratch memory lies.
struct S4dBackward {
  const S4dBackwardArgs& args;
  bool direct, wants_y, wants_u, wants_sums;
  Columns columns;
  S4dCoefficients coefficients;
  S4dSums sums{};
  int64_t sequence_size, outputs, floats = 0;
  float *g[kMaxDirections] = {}, *unfinished = nullptr, *totals = nullptr;

  S4dBackward(const S4dBackwardArgs& a, const Device& device, void* workspace)
      : args(a),
        direct(is_direct(a, device)),
        wants_y(a.dz.data || a.forward_y[0].data),
        wants_u(a.grad[0].du.data || a.grad[1].du.data),
        wants_sums(wants_parameters(a)),
        columns(columns_of(a.batch, a.channels, a.lanes, a.dir[0].u)),
        coefficients(coefficients_of(a, columns, direct, workspace)),
        sequence_size(a.batch * a.lanes * a.channels * a.length),
        outputs(a.concatenate ? a.directions : 1) {
    const auto take = [&](int64_t count) {
      float* const p = static_cast<float*>(workspace) + floats;
      floats += (count + 63) / 64 * 64;
      return p;
    };
    take(args.directions * coefficients.size());
    if (args.z.data && (wants_u || wants_sums))
      for (int64_t k = 0; k < outputs; ++k) g[k] = take(sequence_size);
    if (!direct && args.directions == 2) unfinished = take(sequence_size);
    if (!wants_sums) return;
    divide_sums();
    const int64_t count = args.directions * sums.rows * args.channels;
    sums.sums = take(sums.parts * count);
    totals = take(count);
  }

  Input gradient(int d) const {
    const int k = args.concatenate ? d : 0;
    return g[k] ? Input{float_track(g[k], columns, args.length), true} : Input{track(args.y[k]), false};
  }

 private:
  void divide_sums() {
    S4dSums& s = sums;
    s.columns = columns, s.length = args.length, s.modes = args.modes, s.directions = args.directions;
    s.rows = direct ? args.length : args.modes * kModeSums + 1;
    s.slots = direct ? blocks_of(args.length) : (args.modes + kModes - 1) / kModes;
    if (s.slots == 0) s.slots = 1;
    const int64_t least = kWarpsAtWork / (s.slots * columns.groups * s.directions) + 1;
    s.parts = columns.units < least ? columns.units : least;
    for (int d = 0; d < s.directions; ++d) {
      s.u[d] = {track(args.dir[d].u), false};
      s.reverse[d] = args.dir[d].reverse, s.decay[d] = coefficients.decay[d];
    }
  }
};

// -- launches ---------------------------------------------------------------------------------------------------------

// g, where it is not dy itself.
cudaError_t gate_gradients(const S4dBackward& call, cudaStream_t stream) {
  for (int64_t k = 0; k < call.outputs; ++k) {
    if (!call.g[k]) continue;
    const S4dBackwardArgs& args = call.args;
    const S4dGate p{call.columns, args.length, track(args.y[k]), track(args.z),
                    float_track(call.g[k], call.columns, args.length)};
    const cudaError_t status = with_storage(args.dir[0].u.dtype, [&](auto value) {
      return launch(s4d_gate_kernel<decltype(value)>, blocks_for(p.columns.groups * p.columns.units, kWarps),
                    dim3(kThreads), 0, stream, p);
    });
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

// y again, for itself and for dz.
cudaError_t run_outputs(const S4dBackward& call, cudaStream_t stream) {
  const S4dBackwardArgs& args = call.args;
  S4dPass p = pass_of(args, call.coefficients);
  for (int d = 0; d < args.directions; ++d) {
    p.in[d] = {track(args.dir[d].u), false}, p.dy[d] = track(args.y[d]);
    if (args.forward_y[d].data) p.out[d] = track(args.forward_y[d]);
  }
  if (args.z.data) p.z = track(args.z);
  if (args.dz.data) p.dz = track(args.dz);
  if (call.unfinished) p.unfinished = float_track(call.unfinished, call.columns, args.length);
  return run_s4d(p, args.dir[0].u.dtype, call.direct, stream);
}

cudaError_t run_inputs(const S4dBackward& call, cudaStream_t stream) {
  const S4dBackwardArgs& args = call.args;
  S4dPass p = pass_of(args, call.coefficients);
  p.concatenate = args.directions == 2 && !args.shared.u;
  for (int d = 0; d < args.directions; ++d) {
    p.in[d] = call.gradient(d), p.reverse[d] = !args.dir[d].reverse;
    if (args.grad[d].du.data) p.out[d] = track(args.grad[d].du);
  }
  if (call.unfinished && !p.concatenate) p.unfinished = float_track(call.unfinished, call.columns, args.length);
  return run_s4d(p, args.dir[0].u.dtype, call.direct, stream);
}

cudaError_t run_parameters(const S4dBackward& call, cudaStream_t stream) {
  const S4dBackwardArgs& args = call.args;
  S4dSums s = call.sums;
  for (int d = 0; d < args.directions; ++d) s.g[d] = call.gradient(d);
  const int64_t jobs = s.slots * s.columns.groups * s.directions * s.parts;
  cudaError_t status = with_storage(args.dir[0].u.dtype, [&](auto value) {
    using T = decltype(value);
    return launch(call.direct ? s4d_tap_sums_kernel<T> : s4d_mode_sums_kernel<T>, blocks_for(jobs, kWarps),
                  dim3(kThreads), 0, stream, s);
  });
  if (status != cudaSuccess) return status;
  const S4dTotals t{s.directions * s.rows * args.channels, s.parts, s.sums, call.totals};
  status = launch(s4d_totals_kernel, blocks_for(t.count, 32), dim3(32 * kSlices), 0, stream, t);
  if (status != cudaSuccess) return status;
  S4dParameters p{args.channels, args.length, args.modes, s.rows, args.directions, call.direct};
  p.shares_decay = args.shared.decay, p.shares_weight = args.shared.weight, p.shares_D = args.shared.D;
  p.scale = float(args.scale), p.totals = call.totals;
  for (int d = 0; d < args.directions; ++d) {
    p.decay[d] = call.coefficients.decay[d], p.weight[d] = call.coefficients.weight[d];
    p.ddecay[d] = static_cast<float*>(args.grad[d].ddecay), p.dweight[d] = static_cast<float*>(args.grad[d].dweight);
    p.dD[d] = static_cast<float*>(args.grad[d].dD);
  }
  return launch(s4d_parameters_kernel, blocks_for(args.channels * (args.modes + 1), kThreads), dim3(kThreads), 0,
                stream, p);
}

}  // namespace

int64_t s4d_backward_workspace(const S4dBackwardArgs& args, const Device& device) {
  return S4dBackward(args, device, nullptr).floats * int64_t(sizeof(float));
}

const char* s4d_backward(const S4dBackwardArgs& args, const Launch& on) {
  const S4dBackward call(args, on.device, on.workspace);
  const cudaStream_t stream = static_cast<cudaStream_t>(on.stream);
  cudaError_t status = pack_s4d(call.coefficients, stream);
  if (status == cudaSuccess) status = gate_gradients(call, stream);
  if (status == cudaSuccess && call.wants_y) status = run_outputs(call, stream);
  if (status == cudaSuccess && call.wants_u) status = run_inputs(call, stream);
  if (status == cudaSuccess && call.wants_sums) status = run_parameters(call, stream);
  return sentence(status);
}

}  // namespace ssmvdm::cuda

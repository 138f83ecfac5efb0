// Forward scan. Per channel, time step and state: a product, an exponential, a product and two multiply-adds; the
// special function unit, 16 exponentials of 32 per cycle and multiprocessor, is what binds. Everything else is kept off
// it and off its critical path: B and C come from shared memory, A and h stay in registers, u, delta and z are read
// from memory once and y is written once, in the storage type.
#include "cuda/scan_launch.cuh"

namespace ssmvdm::cuda {
namespace {

template <class T, class Map, bool kPlain, bool kAlongTime>
struct ForwardThread {
  static constexpr int K = Map::kChannels;
  const ScanParams& p;
  Place<Map> at;
  const DirectionParams& x;
  const float* tile;
  float* waiting;  // this thread's column of sums that the other direction or other states have to complete
  const int row;
  const bool meets;
  float decay[K][kStates], h[K][kStates], bias[K], D[K];
  const T *u[K], *delta[K], *z[K];
  T* y[K];

  __device__ ForwardThread(const ScanParams& p_, float* tiles, float* exchange)
      : p(p_),
        at(p_),
        x(p_.dir[at.direction]),
        tile(tiles + at.direction * kTileFloats<Map>),
        waiting(exchange + at.index),
        row(K * at.threads),
        meets(p_.meets()) {
    if (!meets) waiting += at.direction * int64_t(p.length) * row;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      bias[k] = x.bias ? x.bias[at.channel(k)] : 0.f;
      D[k] = x.D ? x.D[at.channel(k)] : 0.f;
    }
  }

  __device__ void begin_states(int first_state) {
    load_decay(p, at, x.A, first_state, decay);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      u[k] = element<const T>(x.u, at.row_offset(x.u, k));
      delta[k] = element<const T>(x.delta, at.row_offset(x.delta, k));
      z[k] = element<const T>(x.z, at.row_offset(x.z, k));
      y[k] = element<T>(x.y, at.row_offset(x.y, k));
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        h[k][n] = 0.f;
        const int state = first_state + at.state(n);
        if (p.initial_state && state < p.states) h[k][n] = p.initial_state[at.state_index(p, k, state)];
      }
    }
  }
  __device__ void end_states(int first_state) const {
    if (!p.last_state) return;
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        const int state = first_state + at.state(n);
        if (at.owns(k) && state < p.states) p.last_state[at.state_index(p, k, state)] = h[k][n];
      }
  }

  // The steps [from, to) of a tile that begins with the step `begin`.
  __device__ void walk(int begin, int from, int to, int first_state, int turn, bool has_met) {
    const ConstantStates<Map> constant(p, x, at, first_state);
    if (is_last(meets, turn, has_met))
      walk_all<true>(begin, from, to, constant, turn, has_met);
    else
      walk_all<false>(begin, from, to, constant, turn, has_met);
  }

 private:
  // kLast: the sums are complete with this thread's.
  template <bool kLast>
  __device__ void walk_all(int begin, int from, int to, const ConstantStates<Map>& constant, int turn, bool has_met) {
    const float* bc = tile + (from - begin) * Map::kStepFloats;
    int s = from;
    if (kAlongTime)
      for (; s < to && s % kChunk != 0; ++s) walk_steps<1, kLast>(bc, s, constant, turn, has_met);
#pragma unroll 1
    for (; s + Map::kSteps <= to; s += Map::kSteps) walk_steps<Map::kSteps, kLast>(bc, s, constant, turn, has_met);
#pragma unroll 1
    for (; s < to; ++s) walk_steps<1, kLast>(bc, s, constant, turn, has_met);
  }

  template <int kCount, bool kLast>
  __device__ void walk_steps(const float*& bc, int s, const ConstantStates<Map>& constant, int turn, bool has_met) {
    float us[K][kCount], deltas[K][kCount], gates[K][kCount];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      load_steps<T, kCount, kAlongTime>(us[k], u[k], s, x.u.time);
      load_steps<T, kCount, kAlongTime>(deltas[k], delta[k], s, x.delta.time);
      if (kLast && x.z) load_steps<T, kCount, kAlongTime>(gates[k], z[k], s, x.z.time);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i, bc += Map::kStepFloats) {
      float dt[K], du[K], sum[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        dt[k] = deltas[k][i] + bias[k];
        if (p.softplus) dt[k] = softplus(dt[k]);
        du[k] = dt[k] * us[k][i];
        sum[k] = kPlain || turn & 1 ? D[k] * us[k][i] : 0.f;
      }
      step<Map, kPlain>(h, decay, bc, at, constant, dt, du, sum);
#pragma unroll
      for (int k = 0; k < K; ++k) us[k][i] = sum[k];
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float* const first = waiting + int64_t(x.reverse ? p.length - 1 - s : s) * row + k * at.threads;
      complete(us[k], first, x.reverse ? -row : row, 0, meets, turn, has_met);
      if (kLast) finish(us[k], gates[k], y[k], s, at.owns(k));
    }
  }

  template <int kCount>
  __device__ void finish(float (&sums_of_y)[kCount], const float (&gates)[kCount], T* out, int s, bool owns) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sums_of_y[i] *= p.scale;
      if (x.z) sums_of_y[i] *= silu(gates[i]);
    }
    if (owns) store_steps<T, kCount, kAlongTime>(sums_of_y, out, s, x.y.time);
  }
};

template <class T, class Map, bool kPlain, bool kAlongTime>
__global__ void __launch_bounds__(Map::kThreads, kPlain ? 2 : 1) scan_forward_kernel(const ScanParams p) {
  SSMVDM_SHARED(float, shared);
  float* const in_shared = shared + p.directions * kTileFloats<Map>;
  ForwardThread<T, Map, kPlain, kAlongTime> thread(
      p, shared, p.exchange ? p.exchange + blockIdx.x * p.exchange_floats : in_shared);
  for (int64_t unit = blockIdx.x / unsigned(p.slices); unit < p.units; unit += p.unit_step) {
    thread.at.begin(p, unit);
    for (int first_state = 0; first_state == 0 || (!kPlain && first_state < p.states); first_state += kStates) {
      thread.begin_states(first_state);
      const int turn = kPlain ? kOnlyTurn : turn_of(p, first_state);
      walk_tiles<Map>(
          0, p.length, p.length, p.meets(), thread.at.direction == 1,
          [&](int begin, int end) { stage_states<T>(p, thread.at, first_state, begin, end, shared); },
          [&](int begin, int from, int to, bool has_met) { thread.walk(begin, from, to, first_state, turn, has_met); });
      thread.end_states(first_state);
    }
  }
}

// The division of a call, and where its blocks exchange.
template <class Map>
struct Division {
  ScanParams p;
  int64_t blocks, workspace_bytes;
  int32_t threads, shared_bytes;

  Division(const ScanArgs& args, const Device& device, int32_t step, int32_t most) : p(scan_params(args)) {
    const int64_t columns = args.length * (p.meets() ? 1 : p.directions);
    const bool exchanges = p.meets() || p.states > kStates;
    const int32_t tiles = p.directions * kTileFloats<Map> * int32_t(sizeof(float));
    // A first division gives the size of a block, which decides where it exchanges and so how many blocks there may be.
    const int32_t width = slice_width(p.group_channels, step, most);
    divide<Map>(p, args.groups, width, 1, 1);
    const int64_t floats = exchanges ? columns * p.width * Map::kUnit : 0;
    const bool in_shared = tiles + floats * int64_t(sizeof(float)) <= device.shared_bytes / 2;
    blocks = divide<Map>(p, args.groups, width, 1, int64_t(device.multiprocessors) * (in_shared ? 32 : 4));
    p.exchange_floats = floats;
    workspace_bytes = in_shared ? 0 : blocks * floats * int64_t(sizeof(float));
    threads = p.width / Map::kChannels * Map::kUnit * p.directions;
    shared_bytes = tiles + (in_shared ? int32_t(floats * int64_t(sizeof(float))) : 0);
  }
};

// Calls f with the division for the layout of u and the kernel that walks it.
template <class T, class F>
auto with_kernel(const ScanArgs& args, const Device& device, const F& f) {
  const Layout layout = layout_of(args);
  const bool plain = is_plain(args);
  if (layout == Layout::kLanes) {
    if (plain)
      return f(Division<LaneThreads<2>>(args, device, 2, 8), scan_forward_kernel<T, LaneThreads<2>, true, false>);
    return f(Division<LaneThreads<1>>(args, device, 1, 8), scan_forward_kernel<T, LaneThreads<1>, false, false>);
  }
  const Division<ChannelThreads<>> division(args, device, 32, 192);
  if (!plain) return f(division, scan_forward_kernel<T, ChannelThreads<>, false, false>);
  if (layout == Layout::kTime) return f(division, scan_forward_kernel<T, ChannelThreads<>, true, true>);
  return f(division, scan_forward_kernel<T, ChannelThreads<>, true, false>);
}

}  // namespace

int64_t scan_forward_workspace(const ScanArgs& args, const Device& device) {
  return with_kernel<float>(args, device, [](const auto& division, auto) { return division.workspace_bytes; });
}

const char* scan_forward(const ScanArgs& args, const Launch& to) {
  return with_storage(args.dir[0].u.dtype, [&](auto value) {
    return with_kernel<decltype(value)>(args, to.device, [&](auto division, auto kernel) {
      if (division.workspace_bytes) division.p.exchange = static_cast<float*>(to.workspace);
      return sentence(launch(kernel, dim3(unsigned(division.blocks)), dim3(division.threads), division.shared_bytes,
                             static_cast<cudaStream_t>(to.stream), division.p));
    });
  });
}

}  // namespace ssmvdm::cuda

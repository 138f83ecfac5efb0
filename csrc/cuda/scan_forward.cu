// Forward scan. Per channel, time step and state: a product, an exponential, a product and two multiply-adds; the
// special function unit, 16 exponentials of 32 per cycle and multiprocessor, is what binds. Everything else is kept off
// it and off its critical path: B and C come from shared memory, A and h stay in registers, u, delta and z are read
// from memory once and y is written once, in the storage type.
#include "cuda/scan_launch.cuh"

namespace ssmvdm::cuda {
namespace {

// What a thread reads and writes of each of its channels.
enum Row { kU, kDelta, kZ, kY, kRows };

template <class T, class Map, bool kPlain, bool kAlongTime>
struct ForwardThread {
  static constexpr int K = Map::kChannels;
  const ScanParams& p;
  Place<Map> at;
  const DirectionParams& x;
  const float* tile;
  Rows<T, kRows * K> rows;
  const bool meets;
  const int step_floats;  // from where a step waits to where the next does
  float* waiting;  // this thread's column of sums that the other direction or other states have to complete
  float decay[K][kStates], h[K][kStates], bias[K], D[K];

  __device__ ForwardThread(const ScanParams& p_, float* shared)
      : p(p_),
        at(p_),
        x(p_.dir[at.direction]),
        tile(shared + at.direction * kTileFloats<Map>),
        rows(shared + p_.directions * kTileFloats<Map>),
        meets(p_.meets()),
        step_floats((x.reverse ? -K : K) * at.threads) {
    float* const in_shared = shared + p.directions * kTileFloats<Map> + decltype(rows)::kFloats * int(blockDim.x);
    waiting = (p.exchange ? p.exchange + blockIdx.x * p.exchange_floats : in_shared) + at.index;
    if (x.reverse) waiting -= int64_t(p.length - 1) * step_floats;
    if (!meets) waiting += at.direction * int64_t(p.length) * K * at.threads;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      bias[k] = x.bias ? x.bias[at.channel(k)] : 0.f;
      D[k] = x.D ? x.D[at.channel(k)] : 0.f;
    }
    if (kPlain) load_decay<kPlain>(p, at, x.A, 0, decay);
  }

  __device__ void begin_states(int first_state) {
    if (!kPlain) load_decay<kPlain>(p, at, x.A, first_state, decay);
    const Strided* const tensors[kRows] = {&x.u, &x.delta, &x.z, &x.y};
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) rows[i * K + k] = element<T>(*tensors[i], at.row_offset(*tensors[i], k));
      if (!at.owns(k)) rows[kY * K + k] = nullptr;  // nothing to be stored
      load_states<kPlain>(h[k], p.initial_state, p, at, k, first_state);
    }
  }
  __device__ void end_states(int first_state) const {
#pragma unroll
    for (int k = 0; k < K; ++k) store_states<kPlain>(h[k], p.last_state, p, at, k, first_state);
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
      load_steps<T, kCount, kAlongTime>(us[k], rows[kU * K + k], s, x.u.time);
      load_steps<T, kCount, kAlongTime>(deltas[k], rows[kDelta * K + k], s, x.delta.time);
      if (kLast) load_gates(gates[k], rows[kZ * K + k], s);
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
      complete(us[k], waiting + int64_t(s) * step_floats + k * at.threads, step_floats, 0, meets, turn, has_met);
      if (!kLast) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) us[k][i] *= gates[k][i];
      if (T* const row = rows[kY * K + k]) store_steps<T, kCount, kAlongTime>(us[k], row, s, x.y.time);
    }
  }

  // What y is to be multiplied with.
  template <int kCount>
  __device__ void load_gates(float (&gates)[kCount], const T* z, int s) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) gates[i] = p.scale;
    if (!x.z) return;
    float values[kCount];
    load_steps<T, kCount, kAlongTime>(values, z, s, x.z.time);
#pragma unroll
    for (int i = 0; i < kCount; ++i) gates[i] *= silu(values[i]);
  }
};

template <class T, class Map, bool kPlain, bool kAlongTime>
__global__ void __launch_bounds__(Map::kThreads, kPlain ? 2 : 1) scan_forward_kernel(const ScanParams p) {
  SSMVDM_SHARED(float, shared);
  ForwardThread<T, Map, kPlain, kAlongTime> thread(p, shared);
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
  static constexpr int32_t kEnough = 512;  // threads of a multiprocessor, to hide the latency of memory
  ScanParams p;
  int64_t blocks, workspace_bytes;
  int32_t threads, shared_bytes;

  Division(const ScanArgs& args, const Device& device) : p(scan_params(args)) {
    const int64_t columns = args.length * (p.meets() ? 1 : p.directions);
    const bool exchanges = p.meets() || p.states > kStates;
    // A first division gives the size of a block, which decides where it exchanges and so how many blocks there may be.
    constexpr int32_t step = Map::kUnit == 1 ? 32 : Map::kChannels;
    const int32_t width = slice_width(p.group_channels, step, Map::kThreads / 2 / Map::kUnit * Map::kChannels);
    divide<Map>(p, args.groups, width, 1, 1);
    threads = p.width / Map::kChannels * Map::kUnit * p.directions;
    const int64_t floats = exchanges ? columns * p.width * Map::kUnit : 0, size = sizeof(float);
    const int64_t own = p.directions * kTileFloats<Map> + Rows<float, kRows * Map::kChannels>::kFloats * threads;
    // In shared memory where two blocks have room, and enough threads, unless there is no room for so many in any case.
    const int64_t of_two = device.shared_bytes_of(1, 2), of_enough = device.shared_bytes_of(threads, kEnough);
    const bool in_shared = (own + floats) * size <= (own * size <= of_enough && of_enough < of_two ? of_enough : of_two);
    const int32_t few = threads * 4 < kEnough ? kEnough / threads : 4;
    blocks = divide<Map>(p, args.groups, width, 1, int64_t(device.multiprocessors) * (in_shared ? 32 : few));
    p.exchange_floats = floats;
    workspace_bytes = in_shared ? 0 : blocks * floats * size;
    shared_bytes = int32_t((own + (in_shared ? floats : 0)) * size);
  }
};

// Calls f with the division for the layout of u and the kernel that walks it.
template <class T, class F>
auto with_kernel(const ScanArgs& args, const Device& device, const F& f) {
  const Layout layout = layout_of(args);
  const bool plain = is_plain(args);
  if (layout == Layout::kLanes) {
    if (plain)
      return f(Division<LaneThreads<2>>(args, device), scan_forward_kernel<T, LaneThreads<2>, true, false>);
    return f(Division<LaneThreads<1>>(args, device), scan_forward_kernel<T, LaneThreads<1>, false, false>);
  }
  if (!plain) {
    using Map = ChannelThreads<false, 1>;
    return f(Division<Map>(args, device), scan_forward_kernel<T, Map, false, false>);
  }
  const Division<ChannelThreads<>> division(args, device);
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

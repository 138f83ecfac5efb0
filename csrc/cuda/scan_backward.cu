// Backward scan. Per sequence, channel and direction a thread
//   A. walks the states once more and keeps them at every chunk of four steps, and u and delta of every step;
//   B. walks against time, chunk by chunk: from what is kept it has h and a = 2^(delta A) of four steps in registers,
//      from them y for dz, and carries q_t = a_{t+1} dh_{t+1} through
//          dh_t = g_t C_t + q_t,    dB_t = dh_t delta_t u_t,    dC_t = g_t h_t,    d(delta u)_t = <dh_t, B_t>,
//          q_{t-1} = a_t dh_t,      d(delta A)_t = q_{t-1} h_{t-1},                g = dy silu(z).
// No state is ever recovered by subtraction. Sequences longer than a segment keep states at two distances, so that the
// memory of a block does not grow with them by more than a 64th of the states.
#include "cuda/scan_adjoint.cuh"

namespace ssmvdm::cuda {
namespace {

template <class T, class Map, bool kPlain, bool kAlongTime>
__global__ void __launch_bounds__(Map::kThreads, 1) scan_backward_kernel(const BackwardParams p) {
  SSMVDM_SHARED(float, shared);
  BackwardThread<T, Map, kPlain, kAlongTime> thread(p, shared);
  Place<Map>& at = thread.at;
  const int segments = (p.length + kSegment - 1) / kSegment;
  const int64_t first_unit = blockIdx.x / unsigned(p.slices);
  const bool is_second = at.direction == 1;
  for (int64_t unit = first_unit; unit < p.units; unit += p.unit_step) {
    at.begin(p, unit);
    for (at.lap = 0; at.lap < p.laps; ++at.lap, at.first_channel += p.width) {
      thread.begin_channel();
      for (int first_state = 0; first_state == 0 || (!kPlain && first_state < p.states); first_state += kStates) {
        thread.begin_states(first_state, kPlain ? kOnlyTurn : turn_of(p, first_state));
        const auto stage = [&](int begin, int end) { stage_states<T>(p, at, first_state, begin, end, shared); };
        const auto states = [&](int from, int to, int last) {
          walk_tiles<Map>(from, to, p.length, false, is_second, stage, [&](int begin, int first, int end, bool) {
            thread.walk_states(begin, first, end, from, last);
          });
        };
        // A long sequence goes through all segments but the last once more, for the states between them.
        int segment = 0;
        for (; segment < segments - 1; ++segment) {
          thread.keep(thread.segment_of(segment));
          states(segment * kSegment, (segment + 1) * kSegment, (segment + 1) * kSegment);
        }
        for (;;) {
          const int from = segment * kSegment, to = from + kSegment < p.length ? from + kSegment : p.length;
          states(from, to, (to - 1) / kChunk * kChunk);
          int done_begin = to, done_end = to;  // the tile whose sums are to be finished
          const auto finish = [&] {
            if (p.wants_states)
              thread.sums.finish_tile(p, at, unit, first_state / kStates, done_begin, done_end);
          };
          walk_tiles_back<Map>(
              from, to, p.length, p.directions == 2, is_second,
              [&](int begin, int end) {
                finish();
                done_begin = begin, done_end = end;
                stage(begin, end);
              },
              [&](int begin, int first, int last, bool has_met) {
                if (has_met)
                  thread.template walk_adjoint<true>(begin, first, last, from, unit);
                else
                  thread.template walk_adjoint<false>(begin, first, last, from, unit);
              });
          __syncthreads();
          finish();
          if (segment == 0) break;
          thread.restore(thread.segment_of(--segment), thread.h);
        }
        thread.end_states(unit == first_unit);
      }
    }
    at.first_channel -= p.laps * p.width;
  }
}

// The division of a call and its workspace.
template <class Map>
struct Division {
  static constexpr int64_t kBlocks = 528;  // at most; sums over sequences are divided among them, so it is a constant
  BackwardParams p{};
  int64_t blocks, workspace_bytes = 0;
  int32_t threads, shared_bytes;

  Division(const ScanBackwardArgs& args, const Device& device, char* workspace) {
    static_cast<ScanParams&>(p) = scan_params(args);
    fill_gradients(args);
    if (Map::kUnit == 1) {
      blocks = divide<Map>(p, args.groups, slice_width(p.group_channels, 32, Map::kThreads / 2), 1, kBlocks);
    } else {  // one slice for as many channels as leave enough blocks: each slice has sums of dB and dC of its own, for
              // which all warps are needed
      const int32_t width = Map::kThreads / 2 / 32;
      const int64_t most = (p.group_channels + width - 1) / width, units = (p.sequences + Map::kUnit - 1) / Map::kUnit;
      const int64_t slices = kBlocks / 2 / (units * args.groups) + 1;
      const int64_t laps = (most + slices - 1) / slices;
      blocks = divide<Map>(p, args.groups, width, int32_t(laps), kBlocks);
    }
    threads = p.width * Map::kUnit * p.directions;
    place(args, device, workspace);
  }

 private:
  void fill_gradients(const ScanBackwardArgs& args) {
    const auto& shared = args.shared;
    const bool both = p.directions == 2;
    bool constant = false;
    for (int d = 0; d < p.directions; ++d) {
      const bool reverse = args.dir[d].reverse;
      const auto see = [&](const SequenceView& view) {
        return walked(view, reverse, args.length);
      };
      const ScanGradDirection& g = args.grad[d];
      p.grad[d] = {see(args.grad[both && shared.u ? 0 : d].du), see(args.grad[both && shared.delta ? 0 : d].ddelta),
                   see(args.dz), see(args.forward_y[d])};
      p.wants_states = p.wants_states || g.dB.data || g.dC.data;
      constant = constant || args.dir[d].B_const || args.dir[d].C_const;
    }
    p.meets_in[kOfY] = p.meets(), p.meets_in[kOfDz] = both && p.concatenate;
    p.meets_in[kOfDu] = both && shared.u, p.meets_in[kOfDdelta] = both && shared.delta;
    p.wants_outputs = args.dz.data || args.forward_y[0].data;
    p.dlast_state = static_cast<const float*>(args.dlast_state);
    p.dinitial_state = static_cast<float*>(args.dinitial_state);
    p.rows = p.states + 2 + (constant ? 2 * p.states : 0);
  }

  // Gives every part its place: shared memory as long as there is some, else the workspace.
  void place(const ScanBackwardArgs& args, const Device& device, char* workspace) {
    using Sums = decltype(sums_for(Map{}));
    const int64_t chunks = ((p.length < kSegment ? p.length : kSegment) + kChunk - 1) / kChunk;
    const int64_t segments = (p.length + kSegment - 1) / kSegment;
    p.chunk_floats = chunks * kChunkFloats * threads;
    p.segment_floats = segments * kStates * threads;
    const bool has_turns = p.turns() > 1;
    const bool all_meet = p.meets_in[kOfY] && p.meets_in[kOfDu] && p.meets_in[kOfDdelta];
    const bool any_meets = p.meets_in[kOfY] || p.meets_in[kOfDz] || p.meets_in[kOfDu] || p.meets_in[kOfDdelta];
    const int32_t rows = has_turns && p.directions == 2 && !all_meet ? 2 : 1;
    p.exchange_row = is_plain(args) ? Exchange<Map, true>::kRow : Exchange<Map, false>::kRow * rows;
    p.exchange_floats = any_meets || has_turns ? int64_t(p.length) * p.exchange_row : 0;
    int64_t shared = p.directions * kTileFloats<Map> + Rows<float, kRows>::kFloats * threads +
                     (p.wants_states ? Sums::floats(threads) : 0);
    // What a block of so many threads may take where registers leave room for Map::kThreads.
    const int64_t budget = device.shared_bytes_of(threads, Map::kThreads) / int64_t(sizeof(float));
    const auto take = [&](int64_t floats) {
      float* const own = reinterpret_cast<float*>(workspace + workspace_bytes);
      workspace_bytes += (floats * int64_t(sizeof(float)) + 255) / 256 * 256;
      return own;
    };
    const auto share = [&](int64_t floats) {
      if (shared + floats > budget) return take(blocks * floats);
      shared += floats;
      return static_cast<float*>(nullptr);
    };
    p.chunk_states = share(p.chunk_floats);
    p.exchange = share(p.exchange_floats);
    p.segment_states = segments > 1 ? take(blocks * p.segment_floats) : nullptr;
    const int64_t padded = p.units * Map::kUnit;
    p.state_sums = p.wants_states
                       ? take(p.turns() * int64_t(p.slices) * p.directions * padded * p.length * kStateSums)
                       : nullptr;
    p.parameter_sums = take(p.unit_step * p.directions * p.rows * p.channels);
    shared_bytes = int32_t(shared * int64_t(sizeof(float)));
  }
};

// Which directions a gradient sums: both where they share what it is the gradient of, else each its own.
template <class Gradient, class F>
void for_each_gradient(int directions, bool shared, const Gradient* of_direction, const F& f) {
  if (of_direction[0]) f(of_direction[0], 0, shared ? directions - 1 : 0);
  if (directions == 2 && !shared && of_direction[1]) f(of_direction[1], 1, 1);
}

inline unsigned grid_of(int64_t count) { return unsigned(count < 256 * 65536 ? (count + 255) / 256 : 65536); }

template <class T, class Map>
cudaError_t finish_states(const ScanBackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  for (int which = 0; which < 2; ++which) {
    const SequenceView* views[kMaxDirections];
    for (int d = 0; d < kMaxDirections; ++d) {
      const SequenceView& view = which ? args.grad[d].dC : args.grad[d].dB;
      views[d] = view.data ? &view : nullptr;
    }
    for_each_gradient(p.directions, which ? args.shared.C : args.shared.B, views,
                      [&](const SequenceView* view, int first, int last) {
                        const StateGradient job{strided(*view), which, first, last,
                                                int32_t(args.groups / view->groups)};
                        const int64_t count = view->groups * p.units * Map::kUnit * p.length * p.states;
                        if (status == cudaSuccess && count > 0)
                          status = launch(finish_states_kernel<T, Map>, dim3(grid_of(count)), dim3(256), 0, stream, p,
                                          job);
                      });
  }
  return status;
}

template <class Map>
cudaError_t finish_parameters(const ScanBackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  ParameterGradients jobs{};
  const auto add = [&](void* ScanGradDirection::* member, bool shared, int first_row, int width) {
    void* const pointers[kMaxDirections] = {args.grad[0].*member, args.grad[1].*member};
    for_each_gradient(p.directions, shared, pointers, [&](void* out, int first, int last) {
      jobs.job[jobs.count++] = {static_cast<float*>(out), first_row, width, first, last};
    });
  };
  const int constants = p.states + 2;
  add(&ScanGradDirection::dA, args.shared.A, 0, p.states);
  add(&ScanGradDirection::dD, args.shared.D, p.states, 1);
  add(&ScanGradDirection::ddelta_bias, args.shared.delta_bias, p.states + 1, 1);
  add(&ScanGradDirection::dB_const, args.shared.B, constants, p.states);
  add(&ScanGradDirection::dC_const, args.shared.C, constants + p.states, p.states);
  if (jobs.count == 0) return cudaSuccess;
  const int64_t count = int64_t(p.channels) * (p.states > 1 ? p.states : 1);
  const dim3 grid(grid_of(count * kSlices), unsigned(jobs.count));
  return launch(finish_parameters_kernel<Map>, grid, dim3(32 * kSlices), 0, stream, p, jobs);
}

// Calls f with the division for the layout of u and the kernel that walks it.
template <class T, class F>
auto with_kernel(const ScanBackwardArgs& args, const Device& device, void* workspace, const F& f) {
  const Layout layout = layout_of(args);
  const auto with = [&](auto map, auto kernel) {
    return f(Division<decltype(map)>(args, device, static_cast<char*>(workspace)), map, kernel);
  };
  if (layout == Layout::kLanes) {
    using Map = LaneThreads<1>;
    return with(Map{}, is_plain(args) ? scan_backward_kernel<T, Map, true, false>
                                      : scan_backward_kernel<T, Map, false, false>);
  }
  if (!is_plain(args)) {
    using Map = ChannelThreads<true, 1>;
    return with(Map{}, scan_backward_kernel<T, Map, false, false>);
  }
  using Map = ChannelThreads<true>;
  return with(Map{}, layout == Layout::kTime ? scan_backward_kernel<T, Map, true, true>
                                             : scan_backward_kernel<T, Map, true, false>);
}

}  // namespace

int64_t scan_backward_workspace(const ScanBackwardArgs& args, const Device& device) {
  return with_kernel<float>(args, device, nullptr,
                            [](const auto& division, auto, auto) { return division.workspace_bytes; });
}

const char* scan_backward(const ScanBackwardArgs& args, const Launch& to) {
  const auto stream = static_cast<cudaStream_t>(to.stream);
  return with_storage(args.dir[0].u.dtype, [&](auto value) {
    using T = decltype(value);
    return with_kernel<T>(args, to.device, to.workspace, [&](const auto& division, auto map, auto kernel) {
      using Map = decltype(map);
      const BackwardParams& p = division.p;
      cudaError_t status = launch(kernel, dim3(unsigned(division.blocks)), dim3(division.threads),
                                  division.shared_bytes, stream, p);
      if (status == cudaSuccess && p.wants_states) status = finish_states<T, Map>(args, p, stream);
      if (status == cudaSuccess) status = finish_parameters<Map>(args, p, stream);
      return sentence(status);
    });
  });
}

}  // namespace ssmvdm::cuda

"""The backward scan. A program has a slice of channels and a slice of sequences, and takes tile after tile of them.

For each tile the states are computed again and kept every few steps; then the adjoint walks back over them
(scan_adjoint.py). Sums over the channels of a tile go through registers, from tile to tile through memory that belongs
to one program; what several programs have summed up is added in a fixed order at the end. Each direction is a launch:
with both in one kernel, the addresses of the one would take the registers of the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import BOTH, NEEDS_Y, SCAN, ScanTensors, output_shape
from .arithmetic import decoded
from .call import Results
from .launch import Tiling, Tilings, run
from .layout import check, encoded, is_far, state_view
from .scan_adjoint import Gradients, Sums, put_over_sequences, walk_again, walk_back
from .scan_call import ScanCall
from .scan_walk import load_states, store_states
from .tiles import tile_at


@triton.jit
def backward_kernel(
    x, o, to, initial, dlast, dinitial, kept, sizes, O, PART, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr
):
    sizes = decoded(sizes)
    program = tl.program_id(0).to(tl.int64)
    s_slice, rest = program % sizes.sequence_slices, program // sizes.sequence_slices
    g, d_slice = rest % sizes.groups, rest // sizes.groups
    chunks = (sizes.length + O.STEPS - 1) // O.STEPS
    element = tl.arange(0, BLOCK_D)[None, :, None] * BLOCK_S + tl.arange(0, BLOCK_S)[None, None, :]
    element = element * O.STATES + tl.arange(0, O.STATES)[:, None, None]  # a thread moves four states at once
    kept = kept + (program * chunks * (O.STATES * BLOCK_D * BLOCK_S) + element)
    first_block = d_slice * sizes.channel_blocks // sizes.channel_slices
    first_sequences = s_slice * sizes.sequence_blocks // sizes.sequence_slices
    for block in range(first_block, (d_slice + 1) * sizes.channel_blocks // sizes.channel_slices):
        for sequences in range(first_sequences, (s_slice + 1) * sizes.sequence_blocks // sizes.sequence_slices):
            tile = tile_at(sequences, g, block, sizes, BLOCK_D, BLOCK_S)
            walk_again(load_states(initial, tile, sizes, O), x, o, kept, tile, sizes, O, PART)
            tl.debug_barrier()  # checkpoints may be read by another thread than wrote them
            q = load_states(dlast, tile, sizes, O)
            c = walk_back(q, x, o, to, kept, d_slice, tile, block > first_block, sizes, O, PART)
            put_over_sequences(c, x, to, s_slice, tile, sequences > first_sequences, sizes, O, PART)
            if dinitial is not None:
                store_states(dinitial, c.q, tile, sizes, O)
            tl.debug_barrier()


TILINGS = Tilings(channels=Tiling(32, 1), lanes=Tiling(4, 16, warps=2))
STEPS = 2  # between checkpoints; the states of so many steps are in registers at a time


def scan_backward(*arguments) -> tuple[Tensor, ...]:
    """The operator `scan_backward` of ops.py."""
    dy, dlast, *given, direction, merge, delta_softplus, needs = arguments
    gradients = SCAN.backward_shapes(*arguments)
    tensors = ScanTensors(*given)
    call = ScanCall("scan_backward", tensors, direction, merge, TILINGS)
    u = tensors.u
    check(call.op, "dy", dy, output_shape(u, direction, merge), u.dtype, u.device)
    if dlast is not None:
        if direction == BOTH:
            raise ValueError("scan_backward: dlast_state needs a single direction.")
        state = (*u.shape[:2], tensors.A.shape[1], *u.shape[3:])
        check(call.op, "dlast_state", dlast, state, torch.float32, u.device)
    results = Results(call, gradients[:-1], needs, gradients[-1] if needs & NEEDS_Y else None, dy)
    if not call.is_empty:
        launch_all(call, results, dlast, delta_softplus)
    results.finish()
    return gradients


def launch_all(call: ScanCall, results: Results, dlast: Tensor | None, softplus: bool) -> None:
    kept = results.checkpoints(STEPS, 1)
    to = [gradients_of(call, results, d) for d in range(call.count)]
    outputs = [results.outputs(d) for d in range(call.count)]
    options = call.options(softplus, STEPS, call.has_inner_time(*to, *outputs))
    states = [state_view(t) for t in (call.tensors.initial_state, dlast, results.wanted.get("initial_state"))]
    for launch in range(call.launches):
        for d, x in enumerate(call.directions):
            u, delta = results.part_of("u", d, launch), results.part_of("delta", d, launch)
            to_part = to[d]._replace(DU_ADD=u[0], DU_FINAL=u[1], DDELTA_ADD=delta[0], DDELTA_FINAL=delta[1])
            part = call.part(d, launch, shared=not call.halves)
            run(backward_kernel, call.sizes.programs, kept.device, call.tiling, x, outputs[d], to_part, *states, kept,
                O=options, PART=part, sizes=call.sizes_of_launch(launch))  # fmt: skip
    for d in range(call.count):
        add_up(call, results, d, to[d])


def gradients_of(call: ScanCall, results: Results, d: int) -> Gradients:
    """Memory for one direction."""
    size, x = call.sizes, call.directions[d]
    has = [not m.CONSTANT.value and call.name_of(name, d) in results.wanted for name, m in (("B", x.B), ("C", x.C))]
    columns = size.states * (1 + x.B.CONSTANT.value + x.C.CONSTANT.value) + 2
    du, du_sum = results.views(call.name_of("u", d), d)
    ddelta, ddelta_sum = results.views(call.name_of("delta", d), d)
    over_channels = sums_over_channels(call, sum(has)) if any(has) else None
    over_sequences = results.scratch(size.sequence_slices, size.groups * size.channels, columns)
    flags = [tl.constexpr(value) for value in (*has, False, True, False, True)]
    return Gradients(du, du_sum, ddelta, ddelta_sum, over_channels, over_sequences, encoded(columns), *flags)


def sums_over_channels(call: ScanCall, kinds: int) -> Sums:
    size, u = call.sizes, call.tensors.u
    states = max(4, call.states_at_once * call.launches)
    shape = (size.channel_slices, kinds, u.shape[0], size.groups, size.length, size.lanes, states)
    memory = torch.empty(shape, device=u.device)
    return Sums(memory, *(encoded(stride // 4) for stride in memory.stride()[:-1]), FAR=is_far(memory, 4))


def add_up(call: ScanCall, results: Results, d: int, to: Gradients) -> None:
    """What several programs have summed up, to gradients of parameters, B and C."""
    states, x = call.sizes.states, call.directions[d]
    columns = to.over_sequences.sum(0)  # (channels, columns)
    names = ["A", *(name for name, m in (("B", x.B), ("C", x.C)) if m.CONSTANT.value)]
    for index, name in enumerate(names):
        results.add(name, d, columns[:, index * states : (index + 1) * states])
    results.add("D", d, columns[:, -2])
    results.add("delta_bias", d, columns[:, -1])
    if to.over_channels is None:
        return
    memory = to.over_channels.memory[..., :states]  # beyond which nothing was written
    total = memory.sum(0).movedim(-1, 3)  # (kinds, batch, groups, states, length, lanes)
    names = [name for name, has in (("B", to.DB), ("C", to.DC)) if has.value]
    for index, name in enumerate(names):
        like = call.of(name, d)
        own = like.shape[1] if like.dim() > call.tensors.u.dim() else 1
        results.add(name, d, total[index].unflatten(1, (own, call.groups // own)).sum(2))

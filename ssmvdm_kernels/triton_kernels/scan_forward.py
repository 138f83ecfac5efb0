"""The forward scan: one program per tile, both directions one after the other."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..ops import BOTH, SCAN, ScanTensors
from .arithmetic import decoded, softplus
from .launch import Tiling, Tilings, run
from .layout import Sequence, state_view
from .scan_call import ScanCall
from .scan_walk import advance, load_delta, load_modulation, load_states, output, scaled_A, store_states
from .tiles import load_row, put_y, tile_at, time_of


@triton.jit
def walk(h, x, o, tile, sizes, O, PART):
    """One direction from its first step to its last; returns the states there."""
    A = scaled_A(x, tile, sizes, O)
    for first in range(0, sizes.length, O.STEPS):
        for k in tl.static_range(O.STEPS):
            t = time_of(first, k, sizes.length, PART.REVERSE, O.INNER)
            u, dt = load_row(x.u, tile, t), load_delta(x, tile, t)
            if O.SOFTPLUS:
                dt = softplus(dt)
            h = advance(h, A, load_modulation(x.B, tile, t, sizes, O), u, dt, sizes, O)
            put_y(output(h, x, u, tile, t, sizes, O, PART.FIRST), o, tile, t, PART)
    return h


@triton.jit
def forward_kernel(
    ahead, back, to, to_back, initial, last, sizes, O, PART, PART_BACK, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr
):
    sizes = decoded(sizes)
    program = tl.program_id(0).to(tl.int64)
    # Channels vary fastest: programs side by side read the same B and C.
    block, rest = program % sizes.channel_blocks, program // sizes.channel_blocks
    tile = tile_at(rest // sizes.groups, rest % sizes.groups, block, sizes, BLOCK_D, BLOCK_S)
    h = walk(load_states(initial, tile, sizes, O), ahead, to, tile, sizes, O, PART)
    if last is not None:
        store_states(last, h, tile, sizes, O)
    if back is not None:
        tl.debug_barrier()  # y_sum changes hands
        walk(load_states(None, tile, sizes, O), back, to_back, tile, sizes, O, PART_BACK)


TILINGS = Tilings(channels=Tiling(64, 1), lanes=Tiling(16, 16, warps=2))
STEPS = 4  # at a time where time is the inner axis: each state of B and C needs an address of its own there


def scan_forward(*arguments) -> tuple[Tensor, Tensor]:
    """The operator `scan_forward` of ops.py."""
    *given, direction, merge, delta_softplus, return_last_state = arguments
    y, last = SCAN.forward_shapes(*arguments)
    call = ScanCall("scan_forward", ScanTensors(*given), direction, merge, TILINGS)
    if return_last_state and direction == BOTH:
        raise ValueError("scan_forward: last_state needs a single direction.")
    if call.is_empty:
        return y, last
    written = Sequence(y, call.y_is_sum())
    to = [call.outputs(written, d) for d in range(call.count)]
    states = (state_view(call.tensors.initial_state), state_view(last if return_last_state else None))
    ahead, back = (*call.directions, None)[:2]
    inner = call.has_inner_time(*to) and given[0].shape[2] % STEPS == 0
    options = call.options(delta_softplus, STEPS if inner else 1, inner)
    for launch in range(call.launches):
        parts = [call.part(d, launch, shared=not call.halves) for d in range(2)]
        run(forward_kernel, call.sizes.tiles, y.device, call.tiling, ahead, back, to[0], to[-1], *states,
            O=options, PART=parts[0], PART_BACK=parts[1], sizes=call.sizes_of_launch(launch))  # fmt: skip
    written.finish()
    return y, last

"""S4D in both directions, forward and backward, by the rules of the selective scan's kernels:

    h_t = decay h_{t-1} + u_t        y_t = 2 Re sum_n weight h_t + D u_t

decay, weight and h are complex, here pairs of real tensors. With g = dy before scale and gate, and bars for complex
conjugates, the adjoint is

    dh_t = 2 g_t conj(weight) + conj(decay) dh_{t+1}        du_t = sum_n Re dh_t + D g_t
    dweight = sum_t 2 g_t conj(h_t)                         ddecay = sum_t dh_t conj(h_{t-1})
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import output_shape
from ..ops_s4d import NEEDS_Y, S4D, S4dTensors
from .arithmetic import decoded, number, put_sum
from .call import Call, Results
from .launch import Tiling, Tilings, run
from .layout import Sequence, View, check, encoded, sequence_view
from .tiles import add_part, gradient_of_sum, load_row, put_y, tile_at, time_of

MODES_AT_ONCE = 8
STEPS = 4  # between checkpoints
TILINGS_FORWARD = Tilings(channels=Tiling(64, 1), lanes=Tiling(4, 16))
TILINGS_BACKWARD = Tilings(channels=Tiling(32, 1), lanes=Tiling(2, 16))


class Direction(NamedTuple):
    """What one direction reads; parameters are contiguous."""

    u: View
    decay: Tensor  # (channels, modes, 2)
    weight: Tensor
    D: Tensor | None  # (channels,)


class Gradients(NamedTuple):
    """Where one direction puts its gradients; du None is not wanted."""

    du: View | None
    du_sum: View | None  # where parts of it wait
    over_sequences: Tensor  # (sequence slices, channels, columns): ddecay, dweight, dD
    columns: int  # encoded
    DU_ADD: tl.constexpr  # du is a sum of parts, and others came before
    DU_FINAL: tl.constexpr


@triton.jit
def modes_of(sizes, MODES: tl.constexpr):
    """The modes of this launch, (MODES, 1, 1)."""
    return sizes.first_state + tl.arange(0, MODES)[:, None, None]


@triton.jit
def load_pairs(pointers, tile, sizes, MODES: tl.constexpr):
    """Real and imaginary parts of decay or weight, (MODES, BLOCK_D, 1); 0 for modes that are not there."""
    n = modes_of(sizes, MODES)
    place, mask = pointers + 2 * (tile.d * sizes.states + n), tile.mask_d & (n < sizes.states)
    return tl.load(place, mask=mask, other=0.0), tl.load(place + 1, mask=mask, other=0.0)


@triton.jit
def advance(re, im, decay_re, decay_im, u):
    return decay_re * re - decay_im * im + u, decay_re * im + decay_im * re


@triton.jit
def output(re, im, weight_re, weight_im, x, u, tile, WITH_SKIP: tl.constexpr):
    y = 2.0 * tl.sum(weight_re * re - weight_im * im, 0, keep_dims=True)
    if WITH_SKIP and x.D is not None:
        y += tl.load(x.D + tile.d, mask=tile.mask_d, other=0.0) * u
    return y


@triton.jit
def walk(x, o, kept, tile, sizes, MODES: tl.constexpr, EVERY: tl.constexpr, PART):
    """One direction; leaves the states at `kept` every few steps if there is such a place."""
    decay_re, decay_im = load_pairs(x.decay, tile, sizes, MODES)
    weight_re, weight_im = load_pairs(x.weight, tile, sizes, MODES)
    re = tl.zeros((MODES, tile.mask.shape[1], tile.mask.shape[2]), tl.float32)
    im = re
    SIZE: tl.constexpr = re.shape[0] * re.shape[1] * re.shape[2]
    for first in range(0, sizes.length, EVERY):
        if kept is not None:
            place = kept + first // EVERY * (2 * SIZE)
            tl.store(place, re)
            tl.store(place + SIZE, im)
        for i in range(first, tl.minimum(first + EVERY, sizes.length)):
            t = time_of(i, 0, sizes.length, PART.REVERSE, False)
            u = load_row(x.u, tile, t)
            re, im = advance(re, im, decay_re, decay_im, u)
            if o.y is not None or o.y_sum is not None or o.dz is not None:
                put_y(output(re, im, weight_re, weight_im, x, u, tile, PART.FIRST), o, tile, t, PART)


@triton.jit
def forward_kernel(
    ahead, back, to, to_back, sizes, MODES: tl.constexpr, PART, PART_BACK, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr
):
    sizes = decoded(sizes)
    program = tl.program_id(0).to(tl.int64)
    block, sequences = program % sizes.channel_blocks, program // sizes.channel_blocks
    tile = tile_at(sequences, sequences * 0, block, sizes, BLOCK_D, BLOCK_S)
    walk(ahead, to, None, tile, sizes, MODES, 1024, PART)
    if back is not None:
        tl.debug_barrier()  # y_sum changes hands
        walk(back, to_back, None, tile, sizes, MODES, 1024, PART_BACK)


@triton.jit
def walk_back(x, o, to, kept, slice, tile, add, sizes, MODES: tl.constexpr, STEPS: tl.constexpr, PART):
    """The adjoint of one direction, from its last step to its first, and sums over its steps."""
    decay_re, decay_im = load_pairs(x.decay, tile, sizes, MODES)
    weight_re, weight_im = load_pairs(x.weight, tile, sizes, MODES)
    q_re = tl.zeros((MODES, tile.mask.shape[1], tile.mask.shape[2]), tl.float32)
    q_im, ddecay_re, ddecay_im, dweight_re, dweight_im = q_re, q_re, q_re, q_re, q_re
    dD = tl.zeros(tile.mask.shape, tl.float32)
    SIZE: tl.constexpr = q_re.shape[0] * q_re.shape[1] * q_re.shape[2]
    chunks = (sizes.length + STEPS - 1) // STEPS
    for later in range(chunks):
        first = (chunks - 1 - later) * STEPS
        place = kept + first // STEPS * (2 * SIZE)
        re, im = tl.load(place), tl.load(place + SIZE)
        states = ((re, im),)
        for k in tl.static_range(STEPS):
            i = tl.minimum(first + k, sizes.length - 1)
            u = load_row(x.u, tile, time_of(i, 0, sizes.length, PART.REVERSE, False))
            re, im = advance(re, im, decay_re, decay_im, u)
            states = states + ((re, im),)
        for k in tl.static_range(STEPS - 1, -1, -1):
            if first + k < sizes.length:
                t = time_of(first, k, sizes.length, PART.REVERSE, False)
                g, u = gradient_of_sum(o, tile, t), load_row(x.u, tile, t)
                before_re, before_im = states[k]
                after_re, after_im = states[k + 1]
                twice = 2.0 * g
                next_re = decay_re * q_re + decay_im * q_im + twice * weight_re
                q_im = decay_re * q_im - decay_im * q_re - twice * weight_im
                q_re = next_re
                ddecay_re += q_re * before_re + q_im * before_im
                ddecay_im += q_im * before_re - q_re * before_im
                dweight_re += twice * after_re
                dweight_im -= twice * after_im
                du = tl.sum(q_re, 0, keep_dims=True)
                if PART.FIRST and x.D is not None:
                    du += tl.load(x.D + tile.d, mask=tile.mask_d, other=0.0) * g
                    dD += g * u
                if to.du is not None:
                    add_part(to.du, to.du_sum, du, tile, t, to.DU_ADD, to.DU_FINAL)
    columns, n = number(to.columns), modes_of(sizes, MODES)
    row = to.over_sequences + (slice * sizes.channels + tile.d) * columns
    mask = tile.mask_d & (n < sizes.states)
    put_sum(row + 2 * n, tl.sum(ddecay_re, 2, keep_dims=True), mask, add)
    put_sum(row + 2 * n + 1, tl.sum(ddecay_im, 2, keep_dims=True), mask, add)
    put_sum(row + 2 * (sizes.states + n), tl.sum(dweight_re, 2, keep_dims=True), mask, add)
    put_sum(row + 2 * (sizes.states + n) + 1, tl.sum(dweight_im, 2, keep_dims=True), mask, add)
    if PART.FIRST:
        put_sum(row + columns - 1, tl.sum(dD, 2, keep_dims=True), tile.mask_d, add)


@triton.jit
def backward_kernel(
    x, o, to, kept, sizes, MODES: tl.constexpr, STEPS: tl.constexpr, PART, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr
):
    sizes = decoded(sizes)
    program = tl.program_id(0).to(tl.int64)
    s_slice, d_slice = program % sizes.sequence_slices, program // sizes.sequence_slices
    chunks = (sizes.length + STEPS - 1) // STEPS
    element = tl.arange(0, BLOCK_D)[None, :, None] * BLOCK_S + tl.arange(0, BLOCK_S)[None, None, :]
    element += tl.arange(0, MODES)[:, None, None] * (BLOCK_D * BLOCK_S)
    kept = kept + (program * chunks * (2 * MODES * BLOCK_D * BLOCK_S) + element)
    first_block = d_slice * sizes.channel_blocks // sizes.channel_slices
    first_sequences = s_slice * sizes.sequence_blocks // sizes.sequence_slices
    for block in range(first_block, (d_slice + 1) * sizes.channel_blocks // sizes.channel_slices):
        for sequences in range(first_sequences, (s_slice + 1) * sizes.sequence_blocks // sizes.sequence_slices):
            tile = tile_at(sequences, program * 0, block, sizes, BLOCK_D, BLOCK_S)
            walk(x, o, kept, tile, sizes, MODES, STEPS, PART)
            tl.debug_barrier()  # checkpoints may be read by another thread than wrote them
            walk_back(x, o, to, kept, s_slice, tile, sequences > first_sequences, sizes, MODES, STEPS, PART)
            tl.debug_barrier()


class S4dCall(Call):
    """Checked arguments, and the views of each direction."""

    def __init__(self, op: str, tensors: S4dTensors, direction: int, merge: int, tilings: Tilings):
        u, modes = tensors.u, tensors.decay.shape[1]
        for name, x in zip(tensors._fields, tensors, strict=True):
            if x is not None:
                kind, dtype, shape = name.removesuffix("_b"), torch.float32, (u.shape[1], modes, 2)
                if kind in ("u", "z"):
                    dtype, shape = u.dtype, u.shape
                elif kind == "D":
                    shape = (u.shape[1],)
                check(op, name, x, shape, dtype, u.device)
        super().__init__(tensors, direction, merge, modes, 1, MODES_AT_ONCE, tilings)
        self.directions = [self._direction(d) for d in range(self.count)]

    def _direction(self, d: int) -> Direction:
        parameters = (None if t is None else t.contiguous() for t in (self.of(n, d) for n in ("decay", "weight", "D")))
        return Direction(sequence_view(self.of("u", d)), *parameters)


def s4d_forward(*arguments) -> Tensor:
    """The operator `s4d_forward` of ops_s4d.py."""
    *given, direction, merge = arguments
    y = S4D.forward_shapes(*arguments)
    call = S4dCall("s4d_forward", S4dTensors(*given), direction, merge, TILINGS_FORWARD)
    if call.is_empty:
        return y
    written = Sequence(y, call.y_is_sum())
    to = [call.outputs(written, d) for d in range(call.count)]
    ahead, back = (*call.directions, None)[:2]
    for launch in range(call.launches):
        part, part_back = (call.part(d, launch, shared=not call.halves) for d in range(2))
        run(forward_kernel, call.sizes.tiles, y.device, call.tiling, ahead, back, to[0], to[-1],
            MODES=call.states_at_once, PART=part, PART_BACK=part_back, sizes=call.sizes_of_launch(launch))  # fmt: skip
    written.finish()
    return y


def s4d_backward(*arguments) -> tuple[Tensor, ...]:
    """The operator `s4d_backward` of ops_s4d.py."""
    dy, *given, direction, merge, needs = arguments
    tensors = S4dTensors(*given)
    gradients = S4D.backward_shapes(*arguments)
    call = S4dCall("s4d_backward", tensors, direction, merge, TILINGS_BACKWARD)
    check("s4d_backward", "dy", dy, output_shape(tensors.u, direction, merge), tensors.u.dtype, tensors.u.device)
    results = Results(call, gradients[:-1], needs, gradients[-1] if needs & NEEDS_Y else None, dy)
    if not call.is_empty:
        launch_all(call, results)
    results.finish()
    return gradients


def launch_all(call: S4dCall, results: Results) -> None:
    size, columns = call.sizes, 4 * call.sizes.states + 1
    kept = results.checkpoints(STEPS, 2)
    sums = [results.scratch(size.sequence_slices, size.channels, columns) for _ in range(call.count)]
    outputs = [results.outputs(d) for d in range(call.count)]
    for launch in range(call.launches):
        for d, x in enumerate(call.directions):
            (du, du_sum), (add, final) = results.views(call.name_of("u", d), d), results.part_of("u", d, launch)
            to = Gradients(du, du_sum, sums[d], encoded(columns), add, final)
            part = call.part(d, launch, shared=not call.halves)
            run(backward_kernel, size.programs, kept.device, call.tiling, x, outputs[d], to, kept,
                MODES=call.states_at_once, STEPS=STEPS, PART=part, sizes=call.sizes_of_launch(launch))  # fmt: skip
    for d in range(call.count):
        total = sums[d].sum(0)  # (channels, columns)
        results.add("decay", d, total[:, : 2 * size.states])
        results.add("weight", d, total[:, 2 * size.states : -1])
        results.add("D", d, total[:, -1])

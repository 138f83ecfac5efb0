"""The depthwise convolution over time in both directions. A program walks over time with the last `WIDTH` inputs in
registers, reads x once and writes both outputs; long sequences are cut into segments.

At step i a window holds x_{i-WIDTH+1} .. x_i. The causal output at i and the anti-causal one at i - (WIDTH-1) are sums
over it. Backward, the gradients of both before the activation go through windows of their own, and the gradient of x
at i - (WIDTH-1) is a sum over these.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import BOTH, CONV1D, FORWARD, REVERSE, ConvTensors
from .arithmetic import decoded, number, only_if, put_sum, sigmoid
from .launch import Tiling, Tilings, ceil, run, sizes_of
from .layout import Sequence, View, check, encoded, sequence_view
from .tiles import Time, at, tile_at

TILINGS = Tilings(channels=Tiling(64, 1), lanes=Tiling(1, 64))
SEGMENT = 256  # steps that one program takes


class Filter(NamedTuple):
    """One direction; None where it is not computed."""

    weight: Tensor  # (channels, width)
    bias: Tensor | None  # (channels,)
    y: View  # what comes out, or its gradient


class Options(NamedTuple):
    """What a kernel is compiled for."""

    WIDTH: tl.constexpr
    SILU: tl.constexpr


@triton.jit
def load_at(view, tile, t, first, last):
    """Time t, or zeros outside of [first, last)."""
    return tl.load(at(view, tile, Time(t, 0)), mask=only_if((t >= first) & (t < last), tile.mask), other=0.0).to(
        tl.float32
    )


@triton.jit
def load_taps(f, tile, O):
    """The filter as a tuple, and the bias."""
    taps = ()
    for k in tl.static_range(O.WIDTH):
        tap = tl.load(f.weight + tile.d * O.WIDTH + k, mask=tile.mask_d, other=0.0)
        taps = taps + (tap.to(tl.float32),)
    bias = tl.zeros(tile.d.shape, tl.float32)
    if f.bias is not None:
        bias = tl.load(f.bias + tile.d, mask=tile.mask_d, other=0.0).to(tl.float32)
    return taps, bias


@triton.jit
def empty_window(tile, O):
    window = ()
    for _ in tl.static_range(O.WIDTH):
        window = window + (tl.zeros(tile.mask.shape, tl.float32),)
    return window


@triton.jit
def moved(window, newest, O):
    """The window one step later."""
    later = ()
    for k in tl.static_range(1, O.WIDTH):
        later = later + (window[k],)
    return later + (newest,)


@triton.jit
def product(window, taps, O, TURNED: tl.constexpr):
    total = window[0] * taps[O.WIDTH - 1 if TURNED else 0]
    for k in tl.static_range(1, O.WIDTH):
        total += window[k] * taps[O.WIDTH - 1 - k if TURNED else k]
    return total


@triton.jit
def activated(x, O):
    return x * sigmoid(x) if O.SILU else x


@triton.jit
def gradient_before(dy, x, O):
    """The gradient before the activation, whose argument is x."""
    s = sigmoid(x)
    return dy * (s * (1.0 + x * (1.0 - s))) if O.SILU else dy


@triton.jit
def forward_kernel(x, causal, anticausal, segment, sizes, O, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):
    sizes, segment = decoded(sizes), number(segment).to(tl.int32)
    program = tl.program_id(0).to(tl.int64)
    block, rest = program % sizes.channel_blocks, program // sizes.channel_blocks
    tile = tile_at(rest % sizes.sequence_blocks, rest * 0, block, sizes, BLOCK_D, BLOCK_S)
    first = (rest // sizes.sequence_blocks).to(tl.int32) * segment
    last = tl.minimum(first + segment, sizes.length)
    REACH: tl.constexpr = O.WIDTH - 1
    if causal is not None:
        taps, bias = load_taps(causal, tile, O)
    if anticausal is not None:
        taps_b, bias_b = load_taps(anticausal, tile, O)
    window = empty_window(tile, O)
    for i in range(first - REACH, last + REACH):
        window = moved(window, load_at(x, tile, i, 0, sizes.length), O)
        if causal is not None:
            y = activated(product(window, taps, O, False) + bias, O)
            tl.store(at(causal.y, tile, Time(i, 0)), y, mask=only_if((i >= first) & (i < last), tile.mask))
        if anticausal is not None:
            t = i - REACH
            y = activated(product(window, taps_b, O, True) + bias_b, O)
            tl.store(at(anticausal.y, tile, Time(t, 0)), y, mask=only_if((t >= first) & (t < last), tile.mask))


@triton.jit
def added_products(sums, g, window, O, TURNED: tl.constexpr):
    """g times each element of the window, added to the gradient of the tap that belongs to it."""
    total = ()
    for k in tl.static_range(O.WIDTH):
        total = total + (sums[k] + g * window[O.WIDTH - 1 - k if TURNED else k],)
    return total


@triton.jit
def put_sums(dtaps, dbias, place, tile, add, O):
    """Columns (taps, bias) of one direction, on to what earlier sequences have left."""
    for k in tl.static_range(O.WIDTH):
        put_sum(place + k, tl.sum(dtaps[k], 2, keep_dims=True), tile.mask_d, add)
    put_sum(place + O.WIDTH, tl.sum(dbias, 2, keep_dims=True), tile.mask_d, add)


@triton.jit
def segment_back(x, causal, anticausal, dx, place, first, last, tile, add, sizes, O):
    """All gradients of one segment of one tile."""
    REACH: tl.constexpr = O.WIDTH - 1
    if causal is not None:
        taps, bias = load_taps(causal, tile, O)
    if anticausal is not None:
        taps_b, bias_b = load_taps(anticausal, tile, O)
    nothing, window = tl.zeros(tile.mask.shape, tl.float32), empty_window(tile, O)
    before, before_b, dtaps, dtaps_b, dbias, dbias_b = window, window, window, window, nothing, nothing
    # The anti-causal gradient at first - REACH is the earliest that dx needs; its window begins there.
    for i in range(first - REACH, last + REACH):
        window = moved(window, load_at(x, tile, i, 0, sizes.length), O)
        t = i - REACH
        total = nothing
        if causal is not None:
            g = gradient_before(load_at(causal.y, tile, i, 0, sizes.length), product(window, taps, O, False) + bias, O)
            before = moved(before, g, O)
            total += product(before, taps, O, True)
            own = tl.where((i >= first) & (i < last), g, 0.0)
            dtaps, dbias = added_products(dtaps, own, window, O, False), dbias + own
        if anticausal is not None:
            dy = load_at(anticausal.y, tile, t, 0, sizes.length)
            g = gradient_before(dy, product(window, taps_b, O, True) + bias_b, O)
            before_b = moved(before_b, g, O)
            total += product(before_b, taps_b, O, False)
            own = tl.where((t >= first) & (t < last), g, 0.0)
            dtaps_b, dbias_b = added_products(dtaps_b, own, window, O, True), dbias_b + own
        if dx is not None:
            tl.store(at(dx, tile, Time(t, 0)), total, mask=only_if((t >= first) & (t < last), tile.mask))
    if causal is not None:
        put_sums(dtaps, dbias, place, tile, add, O)
    if anticausal is not None:
        put_sums(dtaps_b, dbias_b, place + (O.WIDTH + 1), tile, add, O)


@triton.jit
def backward_kernel(x, causal, anticausal, dx, sums, segment, sizes, O, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):
    sizes, segment = decoded(sizes), number(segment).to(tl.int32)
    program = tl.program_id(0).to(tl.int64)
    block, rest = program % sizes.channel_blocks, program // sizes.channel_blocks
    slice, number_of_segment = rest % sizes.sequence_slices, rest // sizes.sequence_slices
    first = number_of_segment.to(tl.int32) * segment
    last = tl.minimum(first + segment, sizes.length)
    begin = slice * sizes.sequence_blocks // sizes.sequence_slices
    for sequences in range(begin, (slice + 1) * sizes.sequence_blocks // sizes.sequence_slices):
        tile = tile_at(sequences, rest * 0, block, sizes, BLOCK_D, BLOCK_S)
        place = sums + (rest * sizes.channels + tile.d) * (2 * (O.WIDTH + 1))
        segment_back(x, causal, anticausal, dx, place, first, last, tile, sequences > begin, sizes, O)


class ConvCall:
    """Checked arguments, and the two filters."""

    def __init__(self, op: str, tensors: ConvTensors, direction: int, silu: bool, ys: tuple[View | None, View | None]):
        x, weight, bias, weight_b, bias_b = tensors
        for name, tensor in zip(tensors._fields, tensors, strict=True):
            if tensor is not None:
                shape = {"x": x.shape, "bias": x.shape[1:2]}.get(name[:4], (x.shape[1], weight.shape[1]))
                dtype = x.dtype if tensor.dtype == x.dtype else torch.float32
                check(op, name, tensor, shape, dtype, x.device)
        own = direction == BOTH
        self.own = (own and weight_b is not None, own and bias_b is not None)
        filters = ((weight, bias, ys[0]), (weight_b if self.own[0] else weight, bias_b if self.own[1] else bias, ys[1]))
        self.filters = [
            None if skipped == direction else Filter(w.contiguous(), None if b is None else b.contiguous(), y)
            for (w, b, y), skipped in zip(filters, (REVERSE, FORWARD), strict=True)
        ]
        self.tiling = TILINGS.of(x)
        self.sizes = sizes_of(x, 0, 1, self.tiling)
        self.segments = ceil(x.shape[2], SEGMENT)
        self.is_empty = x.shape[0] == 0 or x.shape[1] == 0 or math.prod(x.shape[3:]) == 0
        self.options = Options(tl.constexpr(weight.shape[1]), tl.constexpr(silu))
        self.device = x.device

    def run(self, kernel, programs: int, *arguments) -> None:
        if programs:
            segment = encoded(SEGMENT)
            run(kernel, programs, self.device, self.tiling, *arguments, segment, O=self.options, sizes=self.sizes)


def conv1d_forward(*arguments) -> tuple[Tensor, Tensor]:
    """The operator `conv1d_forward` of ops.py."""
    *given, direction, silu = arguments
    tensors = ConvTensors(*given)
    ys = CONV1D.forward_shapes(*arguments)
    written = [Sequence(y, False) if y.dim() == tensors.x.dim() else None for y in ys]
    views = tuple(None if sequence is None else sequence.views(0, False)[0] for sequence in written)
    call = ConvCall("conv1d_forward", tensors, direction, silu, views)
    if not call.is_empty:
        programs = call.sizes.tiles * call.segments
        call.run(forward_kernel, programs, sequence_view(tensors.x), *call.filters)
    for sequence in written:
        if sequence is not None:
            sequence.finish()
    return ys


def conv1d_backward(*arguments) -> tuple[Tensor, ...]:
    """The operator `conv1d_backward` of ops.py."""
    dy, dy_b, *given, direction, silu, needs = arguments
    tensors = ConvTensors(*given)
    x = tensors.x
    gradients = CONV1D.backward_shapes(*arguments)
    wanted = {
        name: gradient
        for index, (name, tensor, gradient) in enumerate(zip(tensors._fields, tensors, gradients, strict=True))
        if tensor is not None and needs >> index & 1
    }
    views = []
    for name, incoming, skipped in (("dy", dy, REVERSE), ("dy_b", dy_b, FORWARD)):
        if direction != skipped:
            check("conv1d_backward", name, incoming, x.shape, x.dtype, x.device)
        views.append(None if direction == skipped else sequence_view(incoming))
    call = ConvCall("conv1d_backward", tensors, direction, silu, tuple(views))
    for name, gradient in wanted.items():
        if name != "x":
            gradient.zero_()
    if call.is_empty or call.segments == 0:
        return gradients
    written = Sequence(wanted["x"], False) if "x" in wanted else None
    width, slices = call.options.WIDTH.value, call.segments * call.sizes.sequence_slices
    sums = torch.empty((slices, x.shape[1], 2, width + 1), dtype=torch.float32, device=x.device)
    dx = None if written is None else written.views(0, False)[0]
    programs = slices * call.sizes.channel_blocks
    call.run(backward_kernel, programs, sequence_view(x), *call.filters, dx, sums)
    if written is not None:
        written.finish()
    for d, f in enumerate(call.filters):
        if f is None:
            continue
        total = sums[:, :, d].sum(0)  # (channels, width + 1)
        for name, own, part in (("weight", call.own[0], total[:, :-1]), ("bias", call.own[1], total[:, -1])):
            name = f"{name}_b" if d == 1 and own else name
            if name in wanted:
                wanted[name] += part
    return gradients

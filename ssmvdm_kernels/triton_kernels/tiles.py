"""The tile of a program, rows of tensors seen from it, and what becomes of y: shared by all kernels that scan."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arithmetic import number, offset, sigmoid
from .layout import View


class Tile(NamedTuple):
    """BLOCK_D channels x BLOCK_S lanes of one batch entry, all indices int64."""

    b: tl.tensor
    g: tl.tensor  # group of channels with their own B or C
    d: tl.tensor  # (1, BLOCK_D, 1)
    s: tl.tensor  # (1, 1, BLOCK_S)
    mask_d: tl.tensor
    mask_s: tl.tensor
    mask: tl.tensor  # (1, BLOCK_D, BLOCK_S)


@triton.jit
def tile_at(sequences, g, block, sizes, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):
    """The tile of a block of channels of group g, and of a block of sequences, which are those of one batch entry."""
    b, lane_block = sequences // sizes.lane_blocks, sequences % sizes.lane_blocks
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)[None, :, None]
    s = lane_block * BLOCK_S + tl.arange(0, BLOCK_S)[None, None, :]
    mask_d, mask_s = d < sizes.channels, s < sizes.lanes
    return Tile(b, g, d + g * sizes.channels, s, mask_d, mask_s, mask_d & mask_s)


@triton.jit
def places(view, tile, further):
    """Pointers to the elements of the tile, so much further along other axes."""
    row = offset(tile.d, view.channel, view.FAR) + offset(tile.s, view.lane, view.FAR)
    return view.data + tile.b * number(view.batch) + (row + further)


class Time(NamedTuple):
    """`start`, and so many steps after it where time is the inner axis: those become part of instructions."""

    start: tl.tensor
    after: tl.constexpr


@triton.jit
def time_of(first, k: tl.constexpr, length, REVERSE: tl.constexpr, INNER: tl.constexpr):
    """The time of step first + k of a walk. INNER: time is the inner axis of all that the walk reads and writes."""
    AFTER: tl.constexpr = k if INNER else 0
    step = first + (k - AFTER)
    return Time(length - 1 - step if REVERSE else step, -AFTER if REVERSE else AFTER)


@triton.jit
def at(view, tile, t):
    """Pointers to the elements of the tile at time t."""
    return places(view, tile, offset(t.start, view.time, view.FAR)) + t.after


@triton.jit
def load_row(view, tile, t):
    return tl.load(at(view, tile, t), mask=tile.mask, other=0.0).to(tl.float32)


class Part(NamedTuple):
    """One walk out of several that a result is the sum of: directions, and launches for some of the states each."""

    REVERSE: tl.constexpr
    FIRST: tl.constexpr  # of the launches; only this one has D u
    ADD: tl.constexpr  # to what other parts have left
    FINAL: tl.constexpr  # no part comes after


@triton.jit
def add_part(total, waiting, value, tile, t, ADD: tl.constexpr, FINAL: tl.constexpr):
    """One more part of a sum. It waits for the last one in float32, in memory that only this program reads."""
    if ADD:
        value += load_row(waiting, tile, t)
    if FINAL:
        tl.store(at(total, tile, t), value, mask=tile.mask)
    else:
        tl.store(at(waiting, tile, t), value, mask=tile.mask)


class Outputs(NamedTuple):
    """Where y goes, and what hangs on it. `y_sum` and `dz_sum` are where parts wait, None if there is one part only."""

    y: View | None
    y_sum: View | None
    z: View | None
    dy: View | None
    dz: View | None
    dz_sum: View | None
    SCALE: tl.constexpr
    ADD_DZ: tl.constexpr  # dz is a sum over two halves of y, and this is the second one
    FINAL_DZ: tl.constexpr


@triton.jit
def put_y(y, o, tile, t, PART):
    """A part of y at time t; with the last one also scale, gate, and the gradient of the gate."""
    if PART.ADD:
        y += load_row(o.y_sum, tile, t)
    if PART.FINAL:
        y *= o.SCALE
        if o.z is not None:
            z = load_row(o.z, tile, t)
            gate = sigmoid(z)
            if o.dz is not None:
                dz = load_row(o.dy, tile, t) * y * (gate * (1.0 + z * (1.0 - gate)))
                add_part(o.dz, o.dz_sum, dz, tile, t, o.ADD_DZ, o.FINAL_DZ)
            y *= z * gate
        if o.y is not None:
            tl.store(at(o.y, tile, t), y, mask=tile.mask)
    else:
        tl.store(at(o.y_sum, tile, t), y, mask=tile.mask)


@triton.jit
def gradient_of_sum(o, tile, t):
    """dy before scale and gate."""
    g = load_row(o.dy, tile, t)
    if o.z is not None:
        z = load_row(o.z, tile, t)
        g *= z * sigmoid(z)
    return g * o.SCALE

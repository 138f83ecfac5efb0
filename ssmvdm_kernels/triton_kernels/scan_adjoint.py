"""The adjoint of the selective scan over one tile, for the backward kernel.

The states are computed again and kept every few steps; then the steps between two kept states are computed once more
into registers and the adjoint walks over them, against time. With q_t = a_{t+1} dh_{t+1} carried and g = dy before
scale and gate,

    dh_t = g_t C_t + q_t        d(delta u)_t = <dh_t, B_t>        dB_t = sum_d dh_t delta_t u_t        dC_t = sum_d g_t h_t
    q_{t-1} = a_t dh_t          d(delta A)_t = q_{t-1} h_{t-1}

where a_t h_{t-1} is never taken as h_t - delta_t u_t B_t: that has no digits left where the decay is strong.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import LN_2, number, only_if, sigmoid, softplus, sum_over_channels
from .layout import View
from .scan_walk import (
    advance,
    exists,
    load_delta,
    load_modulation,
    modulation_at,
    output,
    scaled_A,
)
from .tiles import add_part, gradient_of_sum, load_row, put_y


class Sums(NamedTuple):
    """Sums over the channels of a slice: dB, then dC, as far as they vary in time. Strides encoded."""

    data: Tensor  # (channel slices, batch, groups, rows, length, lanes), in any order in memory
    slice: int
    batch: int
    group: int
    row: int
    time: int
    lane: int


class Gradients(NamedTuple):
    """Where one direction puts its gradients; None is not wanted."""

    du: View | None
    du_sum: View | None  # where parts of it wait
    ddelta: View | None
    ddelta_sum: View | None
    over_channels: Sums | None
    over_sequences: Tensor  # (sequence slices, channels, columns): dA, constant dB, constant dC, dD, ddelta_bias
    columns: int  # encoded
    DB: tl.constexpr  # dB varies in time and is wanted
    DC: tl.constexpr
    LEVELS: tl.constexpr  # 2^LEVELS are at least as many states as are summed over channels
    DU_ADD: tl.constexpr  # du is a sum of parts, and others came before
    DU_FINAL: tl.constexpr
    DDELTA_ADD: tl.constexpr
    DDELTA_FINAL: tl.constexpr


@triton.jit
def keep(kept, h, j, tile, sizes, O):
    """Checkpoint j of this program, (states, BLOCK_D, BLOCK_S)."""
    SIZE: tl.constexpr = tile.mask.shape[0] * tile.mask.shape[1]
    place = kept + j * (O.STATES * SIZE)
    for n in tl.static_range(O.STATES):
        tl.store(place + n * SIZE, h[n])


@triton.jit
def kept_states(kept, j, tile, sizes, O):
    SIZE: tl.constexpr = tile.mask.shape[0] * tile.mask.shape[1]
    place = kept + j * (O.STATES * SIZE)
    h = ()
    for n in tl.static_range(O.STATES):
        h = h + (tl.load(place + n * SIZE),)
    return h


@triton.jit
def walk_again(h, x, o, kept, tile, sizes, O, PART):
    """The forward walk, which leaves checkpoints behind, and y for the gradient of its gate."""
    A = scaled_A(x, tile, sizes, O)
    for first in range(0, sizes.length, O.STEPS):
        keep(kept, h, first // O.STEPS, tile, sizes, O)
        for i in range(first, tl.minimum(first + O.STEPS, sizes.length)):
            t = sizes.length - 1 - i if PART.REVERSE else i
            u, dt = load_row(x.u, tile, t), load_delta(x, tile, t)
            if O.SOFTPLUS:
                dt = softplus(dt)
            h = advance(h, A, x, u, dt, tile, t, sizes, O)
            if o.y is not None or o.dz is not None:
                put_y(output(h, x, u, tile, t, sizes, O, PART.FIRST), o, tile, t, PART)


@triton.jit
def steps_again(h, A, x, first, tile, sizes, O, PART):
    """The steps from one checkpoint to the next: u, delta before and after softplus, the states before each step and
    after the last. Steps beyond the end of the sequence leave the states as they are."""
    before, inputs = (), ()
    for k in tl.static_range(O.STEPS):
        i = tl.minimum(first + k, sizes.length - 1)
        t = sizes.length - 1 - i if PART.REVERSE else i
        u, raw = load_row(x.u, tile, t), load_delta(x, tile, t)
        dt = softplus(raw) if O.SOFTPLUS else raw
        before, inputs = before + (h,), inputs + ((u, raw, dt),)
        if O.RAGGED:
            if first + k < sizes.length:
                h = advance(h, A, x, u, dt, tile, t, sizes, O)
        else:
            h = advance(h, A, x, u, dt, tile, t, sizes, O)
    return before + (h,), inputs


@triton.jit
def put_over_channels(values, sums, slice, tile, t, add, sizes, O, LEVELS: tl.constexpr):
    """Sum up dB and dC over the channels of the tile, and on to what the tiles before have left if `add`."""
    place = sums.data + (slice * number(sums.slice) + tile.b * number(sums.batch) + tile.g * number(sums.group))
    place = place + tile.s * number(sums.lane) + t * number(sums.time)
    ROWS: tl.constexpr = len(values)
    COUNT: tl.constexpr = 2**LEVELS
    BLOCK_D: tl.constexpr = tile.mask.shape[0]
    if BLOCK_D >= COUNT:
        for _ in tl.static_range(COUNT - ROWS):
            values = values + (tl.zeros(tile.mask.shape, tl.float32),)
        row = tl.arange(0, COUNT)[:, None]
        n = sizes.first_state + row % O.STATES
        mask = (row < ROWS) & (n < sizes.states) & tile.mask_s
        place = place + (row // O.STATES * sizes.states + n) * number(sums.row)
        total = sum_over_channels(values, LEVELS, BLOCK_D, tile.mask.shape[1])
        tl.store(place, total + tl.load(place, mask=only_if(add, mask), other=0.0), mask=mask)
    else:
        for kind in tl.static_range(ROWS // O.STATES):
            for n in tl.static_range(O.STATES):
                mask = exists(n, tile.mask_s, sizes, O)
                here = place + (kind * sizes.states + sizes.first_state + n) * number(sums.row)
                total = tl.sum(values[kind * O.STATES + n], 0, keep_dims=True)
                tl.store(here, total + tl.load(here, mask=only_if(add, mask), other=0.0), mask=mask)


class Carried(NamedTuple):
    """What goes from one step of the adjoint to the next: q, and sums over time."""

    q: tuple
    dA: tuple
    dB: tuple  # if constant in time, else empty
    dC: tuple
    dD: tl.tensor
    dbias: tl.tensor


@triton.jit
def zeros(COUNT: tl.constexpr, tile):
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros(tile.mask.shape, tl.float32),)
    return found


@triton.jit
def adjoint_step(c, A, before, after, u, raw, dt, x, o, to, slice, t, tile, add, sizes, O, PART):
    """One step against time."""
    g = gradient_of_sum(o, tile, t)
    B, C = modulation_at(x.B, tile, t, sizes), modulation_at(x.C, tile, t, sizes)
    inflow = dt * u
    along_A, along_B = tl.zeros(tile.mask.shape, tl.float32), tl.zeros(tile.mask.shape, tl.float32)
    q, dA, dB, dC = (), (), (), ()
    for n in tl.static_range(O.STATES):
        dh = g * load_modulation(x.C, C, n, tile, sizes, O) + c.q[n]
        if O.UNEVEN:
            dh = tl.where(sizes.first_state + n < sizes.states, dh, 0.0)
        along_B += dh * load_modulation(x.B, B, n, tile, sizes, O)
        carried = tl.exp2(dt * A[n]) * dh
        along_decay = carried * before[n]
        along_A += along_decay * A[n]
        q, dA = q + (carried,), dA + (c.dA[n] + along_decay * dt,)
        dB, dC = dB + (dh * inflow,), dC + (g * after[n],)
    ddelta = along_A * LN_2 + along_B * u
    if O.SOFTPLUS:
        ddelta *= sigmoid(raw)
    du, dD = along_B * dt, c.dD
    if PART.FIRST and x.D is not None:
        du += tl.load(x.D + tile.d, mask=tile.mask_d, other=0.0) * g
        dD += g * u
    if to.du is not None:
        add_part(to.du, to.du_sum, du, tile, t, to.DU_ADD, to.DU_FINAL)
    if to.ddelta is not None:
        add_part(to.ddelta, to.ddelta_sum, ddelta, tile, t, to.DDELTA_ADD, to.DDELTA_FINAL)
    if to.DB or to.DC:
        values = (dB if to.DB else ()) + (dC if to.DC else ())
        put_over_channels(values, to.over_channels, slice, tile, t, add, sizes, O, to.LEVELS)
    return Carried(
        q,
        dA,
        added(c.dB, dB) if x.B.CONSTANT else (),
        added(c.dC, dC) if x.C.CONSTANT else (),
        dD,
        c.dbias + ddelta,
    )


@triton.jit
def added(a, b):
    total = ()
    for n in tl.static_range(len(a)):
        total = total + (a[n] + b[n],)
    return total


@triton.jit
def walk_back(q, x, o, to, kept, slice, tile, add, sizes, O, PART):
    """The adjoint of one direction, from its last step to its first."""
    A = scaled_A(x, tile, sizes, O)
    c = Carried(
        q,
        zeros(O.STATES, tile),
        zeros(O.STATES if x.B.CONSTANT else 0, tile),
        zeros(O.STATES if x.C.CONSTANT else 0, tile),
        tl.zeros(tile.mask.shape, tl.float32),
        tl.zeros(tile.mask.shape, tl.float32),
    )
    chunks = (sizes.length + O.STEPS - 1) // O.STEPS
    for later in range(chunks):
        j = chunks - 1 - later
        states, inputs = steps_again(kept_states(kept, j, tile, sizes, O), A, x, j * O.STEPS, tile, sizes, O, PART)
        for k in tl.static_range(O.STEPS - 1, -1, -1):
            i = j * O.STEPS + k
            t = sizes.length - 1 - i if PART.REVERSE else i
            u, raw, dt = inputs[k]
            if O.RAGGED:
                if i < sizes.length:
                    c = adjoint_step(
                        c, A, states[k], states[k + 1], u, raw, dt, x, o, to, slice, t, tile, add, sizes, O, PART
                    )
            else:
                c = adjoint_step(
                    c, A, states[k], states[k + 1], u, raw, dt, x, o, to, slice, t, tile, add, sizes, O, PART
                )
    return c


@triton.jit
def put_column(pointers, column, value, tile, mask, add):
    """Sum over the lanes of the tile, and on to what the sequences before have left if `add`."""
    total = tl.sum(value, 1, keep_dims=True)
    place = pointers + column
    tl.store(place, total + tl.load(place, mask=only_if(add, mask), other=0.0), mask=mask)


@triton.jit
def put_over_sequences(c, x, to, slice, tile, add, sizes, O, PART):
    columns, channels = number(to.columns), sizes.channels * sizes.groups
    place = to.over_sequences + (slice * channels + tile.d) * columns
    for n in tl.static_range(O.STATES):
        mask = exists(n, tile.mask_d, sizes, O)
        column = sizes.first_state + n
        put_column(place, column, c.dA[n], tile, mask, add)
        if x.B.CONSTANT:
            column += sizes.states
            put_column(place, column, c.dB[n], tile, mask, add)
        if x.C.CONSTANT:
            column += sizes.states
            put_column(place, column, c.dC[n], tile, mask, add)
    if PART.FIRST:
        put_column(place, columns - 2, c.dD, tile, tile.mask_d, add)
        put_column(place, columns - 1, c.dbias, tile, tile.mask_d, add)
    else:
        put_column(place, columns - 1, c.dbias, tile, tile.mask_d, sizes.first_state > 0)

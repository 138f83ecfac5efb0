"""The adjoint of the selective scan over one tile, for the backward kernel.

The states are computed again and kept every few steps; then the steps between two kept states are computed once more
into registers and the adjoint walks over them, against time. With q_t = a_{t+1} dh_{t+1} carried and g = dy before
scale and gate,

    dh_t = g_t C_t + q_t      d(delta u)_t = <dh_t, B_t>          dB_t = sum_d dh_t delta_t u_t
    q_{t-1} = a_t dh_t        d(delta A)_t = q_{t-1} h_{t-1}      dC_t = sum_d g_t h_t

where a_t h_{t-1} is never taken as h_t - delta_t u_t B_t: that has no digits left where the decay is strong.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import LN_2, number, offset, put_sum, sigmoid, softplus
from .layout import View
from .scan_walk import (
    advance,
    load_delta,
    load_modulation,
    output,
    scaled_A,
    states_of,
    with_states,
)
from .tiles import add_part, gradient_of_sum, load_row, put_y, time_of


class Sums(NamedTuple):
    """Sums over the channels of a slice: dB, then dC, as far as they vary in time. States lie side by side, as many as
    all launches have, in fours, which a thread moves at once: strides, encoded, count fours."""

    memory: Tensor  # (channel slices, kinds, batch, groups, length, lanes, states)
    slice: int
    kind: int
    batch: int
    group: int
    time: int
    lane: int
    FAR: tl.constexpr  # offsets within a group need 64 bits


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
    DU_ADD: tl.constexpr  # du is a sum of parts, and others came before
    DU_FINAL: tl.constexpr
    DDELTA_ADD: tl.constexpr
    DDELTA_FINAL: tl.constexpr


class Inputs(NamedTuple):
    """What a step reads, its rows also as `beside_states`."""

    u: tl.tensor
    raw: tl.tensor  # delta before softplus
    dt: tl.tensor
    u_beside: tl.tensor
    dt_beside: tl.tensor
    B: tl.tensor


@triton.jit
def beside_states(row):
    """The same row, spread over threads as states are.

    A thread has four states of four channels, as checkpoints lie in memory, and so uses four times what it loads of B
    and C. Rows are loaded, and their exponentials taken, one element in a thread; Triton would go on so and put all
    states of a channel into one thread, but cannot see through this change of axes.
    """
    return tl.expand_dims(tl.reshape(tl.permute(row, (1, 0, 2)), (row.shape[1], row.shape[2])), 0)


@triton.jit
def walk_again(h, x, o, kept, tile, sizes, O, PART):
    """The forward walk, which leaves checkpoints behind, and y for the gradient of its gate."""
    A = scaled_A(x, tile, sizes, O)
    SIZE: tl.constexpr = h.shape[0] * h.shape[1] * h.shape[2]
    for first in range(0, sizes.length, O.STEPS):
        tl.store(kept + first // O.STEPS * SIZE, h)
        for i in range(first, tl.minimum(first + O.STEPS, sizes.length)):
            t = time_of(i, 0, sizes.length, PART.REVERSE, False)
            u, dt = load_row(x.u, tile, t), load_delta(x, tile, t)
            if O.SOFTPLUS:
                dt = softplus(dt)
            B = load_modulation(x.B, tile, t, sizes, O)
            h = advance(h, A, B, beside_states(u), beside_states(dt), sizes, O)
            if o.y is not None or o.dz is not None:
                put_y(output(h, x, u, tile, t, sizes, O, PART.FIRST), o, tile, t, PART)


@triton.jit
def steps_again(h, A, x, first, tile, sizes, O, PART):
    """The steps from one checkpoint to the next: the states before each step and after the last, and Inputs. Steps
    beyond the end of the sequence leave the states as they are."""
    before, inputs = (), ()
    for k in tl.static_range(O.STEPS):
        if O.INNER:
            t = time_of(first, k, sizes.length, PART.REVERSE, True)
        else:
            t = time_of(tl.minimum(first + k, sizes.length - 1), 0, sizes.length, PART.REVERSE, False)
        u, raw = load_row(x.u, tile, t), load_delta(x, tile, t)
        dt = softplus(raw) if O.SOFTPLUS else raw
        step = Inputs(u, raw, dt, beside_states(u), beside_states(dt), load_modulation(x.B, tile, t, sizes, O))
        before, inputs = before + (h,), inputs + (step,)
        if O.RAGGED:
            if first + k < sizes.length:
                h = advance(h, A, step.B, step.u_beside, step.dt_beside, sizes, O)
        else:
            h = advance(h, A, step.B, step.u_beside, step.dt_beside, sizes, O)
    return before + (h,), inputs


@triton.jit
def sums_at(sums, slice, tile, t, sizes, O):
    """Pointers to the sums of the first kind at time t, (STATES, 1, BLOCK_S)."""
    base = slice * number(sums.slice) + tile.b * number(sums.batch) + tile.g * number(sums.group)
    base = sums.memory + (base + sizes.first_state // 4) * 4
    four = offset(tile.s, sums.lane, sums.FAR) + offset(t.start + t.after, sums.time, sums.FAR)
    return base + (four * 4 + tl.arange(0, O.STATES)[:, None, None])


@triton.jit
def put_over_channels(inflow, dh, g, h, to, slice, tile, t, add, sizes, O):
    """Sum dB = inflow dh and dC = g h, as far as they are wanted, over the channels of the tile."""
    place = sums_at(to.over_channels, slice, tile, t, sizes, O)
    if to.DB:
        put_sum(place, tl.sum(inflow * dh, 1, keep_dims=True), tile.mask_s, add)
    if to.DC:
        place_C = place + number(to.over_channels.kind) * 4 if to.DB else place
        put_sum(place_C, tl.sum(g * h, 1, keep_dims=True), tile.mask_s, add)


class Carried(NamedTuple):
    """What goes from one step of the adjoint to the next: q, and sums over time. dB and dC if constant in time."""

    q: tl.tensor
    dA: tl.tensor
    dB: tl.tensor
    dC: tl.tensor
    dD: tl.tensor
    dbias: tl.tensor


@triton.jit
def adjoint_step(c, A, before, after, step, x, o, to, slice, t, tile, add, sizes, O, PART):
    """One step against time."""
    g = gradient_of_sum(o, tile, t)
    g_beside, inflow = beside_states(g), step.dt_beside * step.u_beside
    dh = g_beside * load_modulation(x.C, tile, t, sizes, O) + c.q
    if O.UNEVEN:
        dh = tl.where(states_of(sizes, O) < sizes.states, dh, 0.0)
    q = tl.exp2(step.dt_beside * A) * dh
    along_decay = q * before
    along_B = tl.sum(dh * step.B, 0, keep_dims=True)
    ddelta = tl.sum(along_decay * A, 0, keep_dims=True) * LN_2 + along_B * step.u
    if O.SOFTPLUS:
        ddelta *= sigmoid(step.raw)
    du, dD = along_B * step.dt, c.dD
    if PART.FIRST and x.D is not None:
        du += tl.load(x.D + tile.d, mask=tile.mask_d, other=0.0) * g
        dD += g * step.u
    if to.du is not None:
        add_part(to.du, to.du_sum, du, tile, t, to.DU_ADD, to.DU_FINAL)
    if to.ddelta is not None:
        add_part(to.ddelta, to.ddelta_sum, ddelta, tile, t, to.DDELTA_ADD, to.DDELTA_FINAL)
    if to.DB or to.DC:
        put_over_channels(inflow, dh, g_beside, after, to, slice, tile, t, add, sizes, O)
    return Carried(
        q,
        c.dA + along_decay * step.dt_beside,
        c.dB + dh * inflow if x.B.CONSTANT else c.dB,
        c.dC + g_beside * after if x.C.CONSTANT else c.dC,
        dD,
        c.dbias + ddelta,
    )


@triton.jit
def walk_back(q, x, o, to, kept, slice, tile, add, sizes, O, PART):
    """The adjoint of one direction, from its last step to its first."""
    A = scaled_A(x, tile, sizes, O)
    SIZE: tl.constexpr = q.shape[0] * q.shape[1] * q.shape[2]
    nothing, row = tl.zeros(q.shape, tl.float32), tl.zeros(tile.mask.shape, tl.float32)
    c = Carried(q, nothing, nothing if x.B.CONSTANT else row, nothing if x.C.CONSTANT else row, row, row)
    chunks = (sizes.length + O.STEPS - 1) // O.STEPS
    for later in range(chunks):
        j = chunks - 1 - later
        h = tl.load(kept + j * SIZE)
        states, inputs = steps_again(h, A, x, j * O.STEPS, tile, sizes, O, PART)
        for k in tl.static_range(O.STEPS - 1, -1, -1):
            t = time_of(j * O.STEPS, k, sizes.length, PART.REVERSE, O.INNER)
            before, after = states[k], states[k + 1]
            u, raw, dt, u_beside, dt_beside, B = inputs[k]  # a tuple that was part of another has lost its names
            step = Inputs(u, raw, dt, u_beside, dt_beside, B)
            if O.RAGGED:
                if j * O.STEPS + k < sizes.length:
                    c = adjoint_step(c, A, before, after, step, x, o, to, slice, t, tile, add, sizes, O, PART)
            else:
                c = adjoint_step(c, A, before, after, step, x, o, to, slice, t, tile, add, sizes, O, PART)
    return c


@triton.jit
def put_over_sequences(c, x, to, slice, tile, add, sizes, O, PART):
    """Sums over the steps and lanes of the tile, and on over sequences."""
    columns, channels = number(to.columns), sizes.channels * sizes.groups
    place, mask = to.over_sequences + (slice * channels + tile.d) * columns, with_states(tile.mask_d, sizes, O)
    column = states_of(sizes, O)
    put_sum(place + column, tl.sum(c.dA, 2, keep_dims=True), mask, add)
    if x.B.CONSTANT:
        column += sizes.states
        put_sum(place + column, tl.sum(c.dB, 2, keep_dims=True), mask, add)
    if x.C.CONSTANT:
        column += sizes.states
        put_sum(place + column, tl.sum(c.dC, 2, keep_dims=True), mask, add)
    if PART.FIRST:
        put_sum(place + columns - 2, tl.sum(c.dD, 2, keep_dims=True), tile.mask_d, add)
        put_sum(place + columns - 1, tl.sum(c.dbias, 2, keep_dims=True), tile.mask_d, add)
    else:
        put_sum(place + columns - 1, tl.sum(c.dbias, 2, keep_dims=True), tile.mask_d, sizes.first_state > 0)

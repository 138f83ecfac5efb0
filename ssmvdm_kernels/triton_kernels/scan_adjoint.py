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

from .arithmetic import (
    LN_2,
    number,
    one_of_products,
    put_sum,
    sigmoid,
    softplus,
    sum_over_channels,
)
from .layout import Fours, View
from .scan_walk import (
    advance,
    fours_at,
    load_delta,
    load_modulation,
    output,
    scaled_A,
    states_of,
    with_states,
)
from .tiles import add_part, gradient_of_sum, load_row, put_y


class Sums(NamedTuple):
    """Sums over the channels of a slice: dB, then dC, as far as they vary in time. Strides, encoded, count fours."""

    memory: Tensor  # (channel slices, kinds, batch, groups, fours, 4, length, lanes)
    first: Fours  # of the first slice and kind
    slice: int
    kind: int


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
    ROUNDS: tl.constexpr  # 2^ROUNDS states in a launch
    DU_ADD: tl.constexpr  # du is a sum of parts, and others came before
    DU_FINAL: tl.constexpr
    DDELTA_ADD: tl.constexpr
    DDELTA_FINAL: tl.constexpr


@triton.jit
def walk_again(h, x, o, kept, tile, sizes, O, PART):
    """The forward walk, which leaves checkpoints behind, and y for the gradient of its gate."""
    A = scaled_A(x, tile, sizes, O)
    SIZE: tl.constexpr = h.shape[0] * h.shape[1] * h.shape[2]
    for first in range(0, sizes.length, O.STEPS):
        tl.store(kept + first // O.STEPS * SIZE, h)
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
def put_over_channels(inflow, dh, g, h, to, slice, tile, t, add, sizes, O):
    """Sum dB = inflow dh and dC = g h, as far as they are wanted, over the channels of the tile."""
    sums = to.over_channels
    KINDS: tl.constexpr = 2 if to.DB and to.DC else 1
    if tile.mask.shape[1] >= KINDS * O.STATES:
        if KINDS == 2:  # the first round sends one kind to the even channels, the other to the odd ones
            total = sum_over_channels(one_of_products(inflow, dh, g, h), 1, to.ROUNDS)
        else:
            total = sum_over_channels(inflow * dh if to.DB else g * h, 0, to.ROUNDS)
        ROWS: tl.constexpr = KINDS * O.STATES
        total = tl.reshape(total, (tile.mask.shape[1] // ROWS, ROWS, tile.mask.shape[2]))
        total = tl.sum(total, 0, keep_dims=True)
        row = tl.arange(0, ROWS)[None, :, None]
        place = fours_at(sums.first, row // KINDS, tile, t, sizes)
        place = place + (slice * number(sums.slice) + row % KINDS * number(sums.kind)) * 4
        put_sum(place, total, tile.mask_s, add)
    else:
        place = fours_at(sums.first, tl.arange(0, O.STATES)[:, None, None], tile, t, sizes)
        place = place + slice * number(sums.slice) * 4
        if to.DB:
            put_sum(place, tl.sum(inflow * dh, 1, keep_dims=True), tile.mask_s, add)
        if to.DC:
            kind = 1 if to.DB else 0
            put_sum(place + kind * number(sums.kind) * 4, tl.sum(g * h, 1, keep_dims=True), tile.mask_s, add)


class Carried(NamedTuple):
    """What goes from one step of the adjoint to the next: q, and sums over time. dB and dC if constant in time."""

    q: tl.tensor
    dA: tl.tensor
    dB: tl.tensor
    dC: tl.tensor
    dD: tl.tensor
    dbias: tl.tensor


@triton.jit
def adjoint_step(c, A, before, after, u, raw, dt, x, o, to, slice, t, tile, add, sizes, O, PART):
    """One step against time."""
    g = gradient_of_sum(o, tile, t)
    dh = g * load_modulation(x.C, tile, t, sizes, O) + c.q
    if O.UNEVEN:
        dh = tl.where(states_of(sizes, O) < sizes.states, dh, 0.0)
    q = tl.exp2(dt * A) * dh
    along_decay = q * before
    along_B = tl.sum(dh * load_modulation(x.B, tile, t, sizes, O), 0, keep_dims=True)
    ddelta = tl.sum(along_decay * A, 0, keep_dims=True) * LN_2 + along_B * u
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
        put_over_channels(dt * u, dh, g, after, to, slice, tile, t, add, sizes, O)
    return Carried(
        q,
        c.dA + along_decay * dt,
        c.dB + dh * (dt * u) if x.B.CONSTANT else c.dB,
        c.dC + g * after if x.C.CONSTANT else c.dC,
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
            i = j * O.STEPS + k
            t = sizes.length - 1 - i if PART.REVERSE else i
            u, raw, dt = inputs[k]
            before, after = states[k], states[k + 1]
            if O.RAGGED:
                if i < sizes.length:
                    c = adjoint_step(c, A, before, after, u, raw, dt, x, o, to, slice, t, tile, add, sizes, O, PART)
            else:
                c = adjoint_step(c, A, before, after, u, raw, dt, x, o, to, slice, t, tile, add, sizes, O, PART)
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

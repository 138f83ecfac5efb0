"""The selective scan of one direction over one tile, as the forward kernel runs it and the backward kernel again.

    h_t = exp2(delta_t (A log2 e)) h_{t-1} + delta_t u_t B_t        y_t = sum_n C_t h_t + D u_t

Names in capitals are known when a kernel is compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ssmvdm_kernels.triton_kernels.arithmetic import LOG2_E, number, only_if
from ssmvdm_kernels.triton_kernels.layout import Modulation, View
from ssmvdm_kernels.triton_kernels.tiles import at, load_row


class Direction(NamedTuple):
    """What one direction reads; parameters are contiguous."""

    u: View
    delta: View
    A: Tensor  # (channels, states)
    B: Modulation
    C: Modulation
    D: Tensor | None  # (channels,)
    bias: Tensor | None  # (channels,)


class Options(NamedTuple):
    """What a kernel is compiled for."""

    STATES: tl.constexpr  # of one launch
    UNEVEN: tl.constexpr  # the last launch has fewer
    SOFTPLUS: tl.constexpr
    STEPS: tl.constexpr  # between checkpoints
    RAGGED: tl.constexpr  # the length is not a multiple of that


@triton.jit
def exists(n, mask, sizes, O):
    """`mask`, and state n of this launch exists."""
    return only_if(sizes.first_state + n < sizes.states, mask) if O.UNEVEN else mask


@triton.jit
def scaled_A(x, tile, sizes, O):
    """A log2 e, a tuple of (BLOCK_D, 1)."""
    A = ()
    for n in tl.static_range(O.STATES):
        place = x.A + tile.d * sizes.states + sizes.first_state + n
        A = A + (tl.load(place, mask=exists(n, tile.mask_d, sizes, O), other=0.0) * LOG2_E,)
    return A


@triton.jit
def modulation_at(x, tile, t, sizes):
    """Pointers to the first state of this launch: (BLOCK_D, 1) if B or C is constant in time, else (1, BLOCK_S)."""
    if x.CONSTANT:
        place = x.data + (tile.d * number(x.channel) + sizes.first_state)
    else:
        place = x.data + (tile.b * number(x.batch) + tile.g * number(x.group))
        place = place + tile.s * number(x.lane) + sizes.first_state * number(x.state) + t * number(x.time)
    return place


@triton.jit
def load_modulation(x, place, n, tile, sizes, O):
    """State n of what `modulation_at` points to."""
    place = place + (n if x.UNIT else n * number(x.state))
    mask = tile.mask_d if x.CONSTANT else tile.mask_s
    return tl.load(place, mask=exists(n, mask, sizes, O), other=0.0).to(tl.float32)


@triton.jit
def load_delta(x, tile, t):
    """delta with bias, before softplus."""
    delta = load_row(x.delta, tile, t)
    return delta if x.bias is None else delta + tl.load(x.bias + tile.d, mask=tile.mask_d, other=0.0)


@triton.jit
def advance(h, A, x, u, dt, tile, t, sizes, O):
    """The states of one launch after time t."""
    B = modulation_at(x.B, tile, t, sizes)
    inflow = dt * u
    after = ()
    for n in tl.static_range(O.STATES):
        flow = inflow * load_modulation(x.B, B, n, tile, sizes, O)
        if O.UNEVEN:  # states that are not there stay 0 even where the inflow is infinite
            flow = tl.where(sizes.first_state + n < sizes.states, flow, 0.0)
        after = after + (tl.exp2(dt * A[n]) * h[n] + flow,)
    return after


@triton.jit
def output(h, x, u, tile, t, sizes, O, WITH_SKIP: tl.constexpr):
    """This launch's part of y at time t; one launch adds D u."""
    y = tl.zeros(tile.mask.shape, tl.float32)
    if WITH_SKIP and x.D is not None:
        y += tl.load(x.D + tile.d, mask=tile.mask_d, other=0.0) * u
    C = modulation_at(x.C, tile, t, sizes)
    for n in tl.static_range(O.STATES):
        y += load_modulation(x.C, C, n, tile, sizes, O) * h[n]
    return y


@triton.jit
def load_states(view, tile, sizes, O):
    """States of the caller, or zeros: a tuple of (BLOCK_D, BLOCK_S)."""
    h = ()
    for n in tl.static_range(O.STATES):
        if view is None:
            h = h + (tl.zeros(tile.mask.shape, tl.float32),)
        else:
            place = at(view, tile, 0) + (sizes.first_state + n) * number(view.state)
            h = h + (tl.load(place, mask=exists(n, tile.mask, sizes, O), other=0.0),)
    return h


@triton.jit
def store_states(view, h, tile, sizes, O):
    for n in tl.static_range(O.STATES):
        place = at(view, tile, 0) + (sizes.first_state + n) * number(view.state)
        tl.store(place, h[n], mask=exists(n, tile.mask, sizes, O))

"""The selective scan of one direction over one tile, as the forward kernel runs it and the backward kernel again.

    h_t = exp2(delta_t (A log2 e)) h_{t-1} + delta_t u_t B_t        y_t = sum_n C_t h_t + D u_t

Names in capitals are known when a kernel is compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import LOG2_E, number, offset
from .layout import Modulation, View
from .tiles import load_row, places


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

    STATES: tl.constexpr  # of one launch, a power of two
    UNEVEN: tl.constexpr  # the last launch has fewer
    SOFTPLUS: tl.constexpr
    STEPS: tl.constexpr  # that are unrolled; in the backward pass, from one checkpoint to the next
    RAGGED: tl.constexpr  # the length is not a multiple of that
    INNER: tl.constexpr  # time is the inner axis of every view, and the length is a multiple


@triton.jit
def states_of(sizes, O):
    """The states of this launch, (STATES, 1, 1)."""
    return sizes.first_state + tl.arange(0, O.STATES)[:, None, None]


@triton.jit
def with_states(mask, sizes, O):
    """A mask for states beside a mask for channels or lanes."""
    return mask & (states_of(sizes, O) < sizes.states) if O.UNEVEN else mask


@triton.jit
def scaled_A(x, tile, sizes, O):
    """A log2 e, (STATES, BLOCK_D, 1)."""
    place = x.A + (tile.d * sizes.states + states_of(sizes, O))
    return tl.load(place, mask=with_states(tile.mask_d, sizes, O), other=0.0) * LOG2_E


@triton.jit
def load_modulation(x, tile, t, sizes, O):
    """B or C at time t: (STATES, BLOCK_D, 1) if it is constant, else (STATES, 1, BLOCK_S)."""
    if x.CONSTANT:
        place = x.data + (tile.d * number(x.channel) + states_of(sizes, O))
        value = tl.load(place, mask=with_states(tile.mask_d, sizes, O), other=0.0)
    else:
        value = load_varying(x, tile, t, sizes, O)
    return value.to(tl.float32)


@triton.jit
def load_varying(x, tile, t, sizes, O):
    """B or C that vary in time. They are loaded as (4, BLOCK_S, STATES / 4): from an order of axes in memory that it
    does not know, Triton spreads the last ones over threads and leaves the first one, four states, to each of them."""
    IN_THREAD: tl.constexpr = min(4, O.STATES)
    n = tl.arange(0, IN_THREAD)[:, None, None] + tl.arange(0, O.STATES // IN_THREAD)[None, None, :] * IN_THREAD
    n += sizes.first_state  # in 64 bits, so that constants in it become part of instructions that load
    s, mask = tl.permute(tile.s, (0, 2, 1)), tl.permute(tile.mask_s, (0, 2, 1))
    place = offset(s, x.lane, x.FAR) + (n if x.UNIT else offset(n, x.state, x.FAR)) + offset(t.start, x.time, x.FAR)
    place = x.data + (tile.b * number(x.batch) + tile.g * number(x.group)) + place + t.after
    if O.UNEVEN:
        value = tl.load(place, mask=mask & (n < sizes.states), other=0.0)
    elif tile.mask.shape[2] > 1:
        value = tl.load(place, mask=mask, other=0.0)
    else:
        value = tl.load(place)  # a program has at least one lane
    return tl.reshape(tl.permute(value, (2, 0, 1)), (O.STATES, 1, tile.mask.shape[2]))


@triton.jit
def load_delta(x, tile, t):
    """delta with bias, before softplus."""
    delta = load_row(x.delta, tile, t)
    return delta if x.bias is None else delta + tl.load(x.bias + tile.d, mask=tile.mask_d, other=0.0)


@triton.jit
def advance(h, A, B, u, dt, sizes, O):
    """The states after a step."""
    inflow = (dt * u) * B
    if O.UNEVEN:  # states that are not there stay 0 even where the inflow is infinite
        inflow = tl.where(states_of(sizes, O) < sizes.states, inflow, 0.0)
    return tl.exp2(dt * A) * h + inflow


@triton.jit
def output(h, x, u, tile, t, sizes, O, WITH_SKIP: tl.constexpr):
    """This launch's part of y at time t; one launch adds D u."""
    y = tl.sum(load_modulation(x.C, tile, t, sizes, O) * h, 0, keep_dims=True)
    if WITH_SKIP and x.D is not None:
        y += tl.load(x.D + tile.d, mask=tile.mask_d, other=0.0) * u
    return y


@triton.jit
def state_places(view, tile, sizes, O):
    return places(view, tile, offset(states_of(sizes, O), view.state, view.FAR))


@triton.jit
def load_states(view, tile, sizes, O):
    """States of the caller, or zeros: (STATES, BLOCK_D, BLOCK_S)."""
    if view is None:
        h = tl.zeros((O.STATES, tile.mask.shape[1], tile.mask.shape[2]), tl.float32)
    else:
        h = tl.load(state_places(view, tile, sizes, O), mask=with_states(tile.mask, sizes, O), other=0.0)
    return h


@triton.jit
def store_states(view, h, tile, sizes, O):
    tl.store(state_places(view, tile, sizes, O), h, mask=with_states(tile.mask, sizes, O))

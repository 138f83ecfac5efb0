"""Functions that kernels are made of: encoded integers, the transcendental functions, sums over channels."""

from __future__ import annotations

import triton
import triton.language as tl

from .layout import Sizes

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def number(encoded):
    """Undo `layout.encoded`. In this order of steps the compiler sees when a number has 32 bits."""
    return (encoded.to(tl.int64) >> 1) - 1


@triton.jit
def decoded(sizes):
    """`layout.Sizes` as numbers."""
    return Sizes(
        number(sizes.length).to(tl.int32),
        number(sizes.channels),
        number(sizes.lanes),
        number(sizes.states),
        number(sizes.first_state),
        number(sizes.groups),
        number(sizes.channel_blocks),
        number(sizes.lane_blocks),
        number(sizes.sequence_blocks),
        number(sizes.channel_slices),
        number(sizes.sequence_slices),
    )


@triton.jit
def only_if(condition, mask):
    """`mask` where a scalar condition holds. The interpreter makes a mask of integers of `mask & condition`."""
    return mask & (tl.zeros(mask.shape, tl.int32) < condition.to(tl.int32))


@triton.jit
def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1, to 5e-9 and rounding: the hardware's logarithm has no relative precision near 1."""
    p = -0.0033184732
    p = p * e + 0.020204589
    p = p * e - 0.05766445
    p = p * e + 0.10680556
    p = p * e - 0.15355396
    p = p * e + 0.19695401
    p = p * e - 0.24958588
    p = p * e + 0.33330512
    p = p * e - 0.4999993
    return (e * e) * p + e


@triton.jit
def exp_of_minus_magnitude(x):
    return tl.exp2(tl.abs(x) * -LOG2_E)


@triton.jit
def sigmoid(x):
    """The logistic function, also the derivative of softplus."""
    e = exp_of_minus_magnitude(x)
    inverse = 1.0 / (1.0 + e)
    return tl.where(x < 0, e * inverse, inverse)


@triton.jit
def softplus(x):
    """log(1 + exp(x))"""
    # A comparison, not max, which would lose a NaN.
    return tl.where(x < 0, 0.0, x) + log1p_unit(exp_of_minus_magnitude(x))


@triton.jit
def sum_over_channels(values, LEVELS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):
    """Sum each of COUNT = 2^LEVELS (BLOCK_D, BLOCK_S) tensors over its first axis -> (COUNT, BLOCK_S).

    A transposed butterfly: each round halves the number of tensors, a channel keeps one of two and gives its share of
    the other to its partner. COUNT - 1 exchanges in all, where reducing one tensor after the other takes 5 COUNT.
    """
    COUNT: tl.constexpr = 2**LEVELS
    channel = tl.arange(0, BLOCK_D)[:, None]
    for level in tl.static_range(LEVELS):
        is_odd = ((channel >> level) & 1) == 1
        partner = tl.broadcast_to(channel ^ (1 << level), (BLOCK_D, BLOCK_S))
        merged = ()
        for i in tl.static_range(len(values) // 2):
            keep = tl.where(is_odd, values[2 * i + 1], values[2 * i])
            give = tl.where(is_odd, values[2 * i], values[2 * i + 1])
            merged = merged + (keep + tl.gather(give, partner, 0),)
        values = merged
    return tl.sum(tl.reshape(values[0], (BLOCK_D // COUNT, COUNT, BLOCK_S)), 0)

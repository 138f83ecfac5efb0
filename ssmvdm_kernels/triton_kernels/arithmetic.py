"""Functions that kernels are made of: encoded integers, the transcendental functions."""

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
def offset(index, stride, FAR: tl.constexpr):
    """index times an encoded stride, in 32 bits if they do."""
    if FAR:
        product = index * number(stride)
    else:
        product = (number(stride).to(tl.int32) * index).to(tl.int32)  # index may be a number of Python
    return product


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
def put_sum(place, total, mask, add):
    """On to what other tiles of this program have left there, if `add`."""
    tl.store(place, total + tl.load(place, mask=only_if(add, mask), other=0.0), mask=mask)


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

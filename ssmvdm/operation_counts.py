"""Operations that torch's counter does not know: the scans, their convolutions, fused attention on the CPU, Fourier
transforms. Every addition, product, division and transcendental function of real numbers counts as one operation, so
that a product and its addition count as two, as they do in torch's own formulas for matrix products.

Counted is what the kernels compute, which includes the states that their backward computes again. Per time step of one
sequence (a channel at a pixel):

    scan, each state         exp(delta A), a h, (delta u) B and their sum, C h and its sum           7
      its backward           the states again 5; adjoint C dy + a g 3; dB, dC, d(delta u), d(delta A), ddelta, dA 12
    S4D, each complex mode   decay h + u 7; Re(weight h) and its sum 4                              11
      its backward           the states again 7; adjoint conj(weight) dy + conj(decay) g 10; du 1; ddecay 8; dweight 4
    convolution              2 per tap; its backward 2 per tap for each of: the sum again, dx, dweight; dbias 1
"""

import math
from collections.abc import Callable

import torch

from ssmvdm_kernels.ops import BOTH, CAT, NEEDS_Y, SUM, ScanTensors
from ssmvdm_kernels.ops_s4d import NEEDS_Y as NEEDS_Y_OF_S4D
from ssmvdm_kernels.ops_s4d import S4dTensors

SIGMOID = 3  # exp, addition, division
SILU = SIGMOID + 1
SILU_AND_DERIVATIVE = SILU + 3  # sigmoid(z) (1 + z - silu(z))
SOFTPLUS = 3  # exp, addition, log


def formulas() -> dict[Callable, Callable]:
    """For `torch.utils.flop_counter.FlopCounterMode(custom_mapping=...)`: functions of shapes and options."""
    aten, own = torch.ops.aten, torch.ops.ssmvdm
    return {
        own.scan_forward: scan_forward,
        own.scan_backward: scan_backward,
        own.s4d_forward: s4d_forward,
        own.s4d_backward: s4d_backward,
        own.conv1d_forward: conv1d_forward,
        own.conv1d_backward: conv1d_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention,
        aten.addmm_: _added_product,
        aten._fft_r2c: _fourier,
        aten._fft_c2r: _fourier,
    }


def scan_forward(*arguments, out_shape=None) -> int:
    *shapes, direction, merge, softplus, _ = arguments
    given = ScanTensors(*shapes)
    directions, elements = _directions(direction), math.prod(given.u)
    each = 7 * given.A[1] + 1 + 2 * (given.D is not None) + _delta(given.delta_bias, softplus)
    return elements * (directions * each + _merged(direction, merge) + _gate(given.z, SILU + 1))


def scan_backward(dy, dlast_state, *arguments, out_shape=None) -> int:
    *shapes, direction, merge, softplus, needs = arguments
    given = ScanTensors(*shapes)
    directions, elements = _directions(direction), math.prod(given.u)
    has_y = given.z is not None or bool(needs & NEEDS_Y)
    each = (20 + 2 * has_y) * given.A[1] + 4 + (4 + 2 * has_y) * (given.D is not None)
    each += _delta(given.delta_bias, softplus) + (SIGMOID + 1 if softplus else 0) + (given.delta_bias is not None)
    return elements * (directions * each + _merged(direction, merge) * has_y + _gate(given.z, SILU_AND_DERIVATIVE + 3))


def s4d_forward(*arguments, out_shape=None) -> int:
    *shapes, direction, merge = arguments
    given = S4dTensors(*shapes)
    each = 11 * given.decay[1] + 2 * (given.D is not None)
    per_element = _directions(direction) * each + _merged(direction, merge) + _gate(given.z, SILU + 1)
    return math.prod(given.u) * per_element


def s4d_backward(dy, *arguments, out_shape=None) -> int:
    *shapes, direction, merge, needs = arguments
    given = S4dTensors(*shapes)
    has_y = given.z is not None or bool(needs & NEEDS_Y_OF_S4D)
    each = (30 + 4 * has_y) * given.decay[1] + (4 + 2 * has_y) * (given.D is not None)
    per_element = _directions(direction) * each + _merged(direction, merge) * has_y
    return math.prod(given.u) * (per_element + _gate(given.z, SILU_AND_DERIVATIVE + 3))


def conv1d_forward(x, weight, bias, weight_b, bias_b, direction, silu, out_shape=None) -> int:
    return math.prod(x) * _directions(direction) * (2 * weight[1] + (SILU if silu else 0))


def conv1d_backward(dy, dy_b, x, weight, bias, weight_b, bias_b, direction, silu, needs, out_shape=None) -> int:
    taps = 2 * weight[1]
    each = 2 * taps + (taps + SILU_AND_DERIVATIVE + 1 if silu else 0) + (bias is not None)
    return math.prod(x) * _directions(direction) * each


def _directions(direction: int) -> int:
    return 2 if direction == BOTH else 1


def _merged(direction: int, merge: int) -> int:
    """One addition per element where two directions become one, and for their mean a product."""
    return 0 if direction != BOTH or merge == CAT else 1 if merge == SUM else 2


def _gate(z, operations: int) -> int:
    return 0 if z is None else operations


def _delta(bias, softplus: bool) -> int:
    return (bias is not None) + (SOFTPLUS if softplus else 0)


def _added_product(total, left, right, out_shape=None, **scales) -> int:
    return 2 * math.prod(left) * right[-1]


def _fused_attention(q, k, v, *options, out_shape=None, **more) -> int:
    return 2 * math.prod(q) * k[-2] + 2 * math.prod(q[:-1]) * math.prod(v[-2:])


def _fourier(shape, dim, normalization, *last, out_shape=None) -> int:
    """2.5 n log2 n per real transform of n numbers, half of a complex one's, as is usual."""
    longest = max(shape, out_shape, key=math.prod)
    n = math.prod(longest[axis] for axis in dim)
    return round(2.5 * math.prod(longest) * math.log2(max(n, 2)))

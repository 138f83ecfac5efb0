"""The specification: what every backend has to compute, written as plain loops over time.

Low precision is widened to float32, float64 stays float64, and the result is rounded once, at the end. Only
out-of-place PyTorch operations are used, so everything here can be differentiated twice, traced, vmapped and run on
any device. The reverse direction walks t = length-1 .. 0 on tensors in natural time order; nothing is flipped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import BOTH, CAT, FORWARD, MEAN, REVERSE, ConvTensors, ScanTensors
from .ops_s4d import S4dTensors


def scan(
    tensors: ScanTensors, direction: int, merge: int, delta_softplus: bool, return_last_state: bool
) -> tuple[Tensor, Tensor]:
    """The selective scan of Mamba (arXiv 2312.00752, equations 2 and 3, algorithm 2), per channel d and state n:

        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = sum_n C_t h_t + D u_t

    Arguments and results are those of the operator `ssmvdm::scan_forward`.
    """
    wide = _widened(tensors)
    if direction == BOTH:
        ahead, last_state = _one_direction(wide, delta_softplus, False)
        back, _ = _one_direction(_reverse_of(wide), delta_softplus, True)
        y = _merged(ahead, back, merge, wide.z)
    else:
        y, last_state = _one_direction(wide, delta_softplus, direction == REVERSE)
        y = y if wide.z is None else y * F.silu(wide.z)
    return y.to(tensors.u.dtype), (last_state if return_last_state else wide.A.new_empty((0,)))


def _merged(ahead: Tensor, back: Tensor, merge: int, z: Tensor | None) -> Tensor:
    y = torch.cat((ahead, back), dim=1) if merge == CAT else ahead + back
    y = 0.5 * y if merge == MEAN else y
    if z is None:
        return y
    gate = F.silu(z)
    return y * (torch.cat((gate, gate), dim=1) if merge == CAT else gate)


def _one_direction(t: ScanTensors, delta_softplus: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """One direction by its unsuffixed arguments: y (batch, channels, length, *lanes) without gate, and the last h."""
    u, delta = t.u, t.delta
    if u.shape[2] == 0:
        return _of_no_steps(t)
    batch, channels, length, *lanes = u.shape
    states = t.A.shape[1]
    A = _beside(t.A, u.dim())  # (1, channels, states, 1...)
    if t.delta_bias is not None:
        delta = delta + _beside(t.delta_bias, u.dim())
    if delta_softplus:
        delta = -F.logsigmoid(-delta)  # F.softplus is exact only below its threshold

    h = t.initial_state if t.initial_state is not None else u.new_zeros((batch, channels, states, *lanes))
    y = [None] * length
    for step in reversed(range(length)) if reverse else range(length):
        delta_t = delta[:, :, step].unsqueeze(2)  # (batch, channels, 1, *lanes)
        u_t = u[:, :, step].unsqueeze(2)
        h = torch.exp(delta_t * A) * h + delta_t * u_t * _at(t.B, u, step)  # (batch, channels, states, *lanes)
        y[step] = (_at(t.C, u, step) * h).sum(2)
    y = torch.stack(y, dim=2)
    return (y if t.D is None else y + _beside(t.D, u.dim()) * u), h


def s4d(tensors: S4dTensors, direction: int, merge: int) -> Tensor:
    """The recurrence of S4D (arXiv 2206.11893), per channel d and complex mode n:

        h_t = decay h_{t-1} + u_t        y_t = 2 Re sum_n weight h_t + D u_t

    Arguments and result are those of the operator `ssmvdm::s4d_forward`.
    """
    dtype = _compute_dtype(tensors.u)
    t = S4dTensors(*(None if tensor is None else tensor.to(dtype) for tensor in tensors))
    if direction == BOTH:
        ahead = _one_direction_s4d(t.u, t.decay, t.weight, t.D, False)
        u, decay, weight, D = (a if b is None else b for a, b in zip(t[:4], t[5:], strict=True))
        back = _one_direction_s4d(u, decay, weight, D, True)
        return _merged(ahead, back, merge, t.z).to(tensors.u.dtype)
    y = _one_direction_s4d(t.u, t.decay, t.weight, t.D, direction == REVERSE)
    return (y if t.z is None else y * F.silu(t.z)).to(tensors.u.dtype)


def _one_direction_s4d(u: Tensor, decay: Tensor, weight: Tensor, D: Tensor | None, reverse: bool) -> Tensor:
    length, lanes = u.shape[2], (1,) * (u.dim() - 3)
    a = torch.view_as_complex(decay.contiguous()).reshape(1, *decay.shape[:2], *lanes)  # (1, channels, modes, 1...)
    c = torch.view_as_complex(weight.contiguous()).reshape(a.shape)
    h = a.new_zeros((u.shape[0], *a.shape[1:3], *u.shape[3:]))
    y = [None] * length
    for step in reversed(range(length)) if reverse else range(length):
        h = a * h + u[:, :, step].unsqueeze(2)
        y[step] = 2 * (c * h).real.sum(2)
    # Sums over no element give the parameters of an empty sequence their gradient, which is zero.
    y = torch.stack(y, dim=2) if length else u + (decay.flatten()[:0].sum() + weight.flatten()[:0].sum())
    return y if D is None else y + _beside(D, u.dim()) * u


def conv1d(tensors: ConvTensors, direction: int, silu: bool) -> tuple[Tensor, Tensor]:
    """Depthwise convolution in time, causal (y) and anti-causal (y_b), each in natural time order:

        y_t = act(bias + sum_k weight_k x_{t-(width-1)+k})      y_b,t = act(bias_b + sum_k weight_b,k x_{t+(width-1)-k})

    Arguments and results are those of the operator `ssmvdm::conv1d_forward`.
    """
    x = tensors.x
    wide = ConvTensors(*(None if t is None else t.to(_compute_dtype(x)) for t in tensors))
    y = y_b = x.new_empty((0,))
    if direction != REVERSE:
        y = _causal_sum(wide.x, wide.weight, wide.bias, silu, direction == REVERSE).to(x.dtype)
    if direction != FORWARD:
        shared = direction == REVERSE
        weight = wide.weight if shared or wide.weight_b is None else wide.weight_b
        bias = wide.bias if shared or wide.bias_b is None else wide.bias_b
        y_b = _causal_sum(wide.x, weight, bias, silu, True).to(x.dtype)
    return y, y_b


def _causal_sum(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    length, width = x.shape[2], weight.shape[1]
    y = x.new_zeros(x.shape) if bias is None else _beside(bias, x.dim()).expand(x.shape)
    for tap in range(width):
        shift = min(width - 1 - tap, length)
        product = _beside(weight[:, tap], x.dim()) * x.narrow(2, shift if reverse else 0, length - shift)
        outside = x.new_zeros((*x.shape[:2], shift, *x.shape[3:]))  # the sequence continues as zeros
        y = y + torch.cat((product, outside) if reverse else (outside, product), dim=2)
    return F.silu(y) if silu else y


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _widened(tensors: ScanTensors) -> ScanTensors:
    dtype = _compute_dtype(tensors.u)
    return ScanTensors(*(None if tensor is None else tensor.to(dtype) for tensor in tensors))


def _reverse_of(t: ScanTensors) -> ScanTensors:
    """The arguments of the reverse direction in unsuffixed places; None means shared with the forward direction."""

    def own(theirs: Tensor | None, shared: Tensor | None) -> Tensor | None:
        return shared if theirs is None else theirs

    return ScanTensors(
        u=own(t.u_b, t.u),
        delta=own(t.delta_b, t.delta),
        A=own(t.A_b, t.A),
        B=own(t.B_b, t.B),
        C=own(t.C_b, t.C),
        D=own(t.D_b, t.D),
        delta_bias=own(t.delta_bias_b, t.delta_bias),
    )


def _beside(parameter: Tensor, dim: int) -> Tensor:
    """View (channels, ...) as (1, channels, ..., 1, ...) with `dim` dimensions."""
    return parameter.reshape((1, *parameter.shape, *(1,) * (dim - 1 - parameter.dim())))


def _at(modulation: Tensor, u: Tensor, step: int) -> Tensor:
    """B or C at one time step, in a shape that broadcasts against h (batch, channels, states, *lanes)."""
    if modulation.dim() == 2:
        return _beside(modulation, u.dim())
    if modulation.dim() == u.dim():
        return modulation[:, :, step].unsqueeze(1)
    return modulation[:, :, :, step].repeat_interleave(u.shape[1] // modulation.shape[1], dim=1)


def _of_no_steps(t: ScanTensors) -> tuple[Tensor, Tensor]:
    """The result for length 0. Sums over no element give every input its gradient, which is zero."""
    nothing = sum(tensor.flatten()[:0].sum() for tensor in t if tensor is not None)
    batch, channels, _, *lanes = t.u.shape
    h = t.initial_state if t.initial_state is not None else t.u.new_zeros((batch, channels, t.A.shape[1], *lanes))
    return t.u + nothing, h + nothing

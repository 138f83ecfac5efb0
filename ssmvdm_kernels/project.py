"""Linear maps over the channels of a video, in the layout that the video has, and their derivatives.

The derivatives are written out so that an autograd formula that computes its own inputs again can call them: it then
agrees with plain autograd bit for bit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .validation import autocast_dtype, is_forward_mode


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = weight x + bias over the channels: x (batch, in, length, *lanes) -> (batch, out, length, *lanes).

    weight: (out, in); bias: (out,). Under autocast all three are brought to its dtype. Differentiable, also twice.
    """
    low = autocast_dtype(x)
    if low is not None:
        x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
    # The compiler, which cannot trace every autograd function, and forward mode differentiate the products themselves.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or is_forward_mode():
        return product(x, weight, bias)
    return _Project.apply(x, weight, bias)


class _Project(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias):
        return product(x, weight, bias).detach()  # no view, which nobody could change in place

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = product(dy, weight.t()) if needs_x else None
        dweight = weight_gradient(dy, x) if needs_weight else None
        return dx, dweight, bias_gradient(dy) if needs_bias else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`project` without its derivative and its autocast. With weight transposed it is the gradient of its own x.

    Videos are multiplied from the left, weight (out, in) times (in, length * lanes), where PyTorch's own matmul of
    these shapes would copy the video to fold the batch into one product. Two cases do fold: channels that are
    contiguous, for which that is a view, and sequences shorter than their width, whose copy is smaller than the weight
    gradients, one per batch element, that the product from the left would sum. Time steps that lie outside the channels
    in memory join the batch.
    """
    if _is_frame_by_frame(x):
        y = product(_frames(x), weight, bias)
        return y.reshape(x.shape[0], x.shape[2], *y.shape[1:]).transpose(1, 2)
    columns = _columns(x)
    batch = columns.shape[0]
    if _folds(columns):
        y = F.linear(columns.transpose(1, 2), weight, bias).transpose(1, 2)
    elif batch == 1:
        single = weight @ columns[0] if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns[0])
        y = single.unsqueeze(0)
    else:
        weights = weight.expand(batch, *weight.shape)
        y = torch.bmm(weights, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), weights, columns)
    return y.reshape(*y.shape[:2], *x.shape[2:])


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Gradient of `project` in its weight: the sum over batch and tokens of dy x^T, (out, in)."""
    if _is_frame_by_frame(x):
        dy, x = _frames(dy), _frames(x)
    dy, x = _columns(dy), _columns(x)
    if _folds(x):
        dy_rows, x_rows = _frames(dy), _frames(x)  # (batch * tokens, out | in)
        return dy_rows.t() @ x_rows
    if x.shape[0] == 1:
        return dy[0] @ x[0].t()
    return torch.bmm(dy, x.transpose(1, 2)).sum(0)


def bias_gradient(dy: Tensor) -> Tensor:
    """Gradient of `project` in its bias: (out,)."""
    if _is_frame_by_frame(dy):
        dy = _frames(dy)
    return _columns(dy).sum((0, 2))


def _is_frame_by_frame(x: Tensor) -> bool:
    """Whether x (batch, channels, length, *lanes) lies in memory as (batch, length, channels, *lanes), which is how
    image layers that see frames as a batch leave a video. Time and lanes are no single axis then, but batch and time.
    """
    if x.dim() < 4 or x.stride(1) == 1:
        return False
    return x.stride(2) > x.stride(1) and x.transpose(1, 2).is_contiguous()


def _frames(x: Tensor) -> Tensor:
    """(batch, channels, length, *lanes) -> (batch * length, channels, *lanes), a view where `_is_frame_by_frame`."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], x.shape[1], *x.shape[3:])


def _columns(x: Tensor) -> Tensor:
    """(batch, channels, length, *lanes) -> (batch, channels, tokens). By reshape alone, as all here: the vmap behind
    `torch.autograd.grad(..., is_grads_batched=True)` knows neither flatten nor unflatten."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _folds(columns: Tensor) -> bool:
    batch, width, tokens = columns.shape
    return columns.stride(1) == 1 or (batch > 1 and tokens < width)

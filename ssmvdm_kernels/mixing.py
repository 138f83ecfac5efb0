"""The Mamba mixer between its two outer projections, as functions: convolution, modulation, scan, gate, W_out.

`mix` leaves the derivative to autograd. `mix_lean` is the same numbers under one autograd formula that saves the output
of W_in and nothing else. Its backward pass computes what precedes the scan again, but not the scan: the backward kernel
walks the states in any case and hands out the scan's result with the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from . import backends, validation
from .once import differentiable_once
from .ops import BOTH, FORWARD, NEEDS_Y, SUM, ConvTensors, ScanTensors
from .project import bias_gradient, product, project, weight_gradient


class Direction(NamedTuple):
    """The parameters that one time direction of the mixer owns, in any floating dtype."""

    conv_weight: Tensor  # (inner, width)
    conv_bias: Tensor  # (inner,)
    x_proj: Tensor  # (rank + 2 states, inner)
    dt_proj: Tensor  # (inner, rank)
    dt_bias: Tensor  # (inner,)
    A_log: Tensor  # (inner, states)
    D: Tensor  # (inner,)

    def split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """dt_low, B and C of the output of x_proj."""
        rank, states = self.dt_proj.shape[1], self.A_log.shape[1]
        return projected.split((rank, states, states), dim=1)


class _Inputs(NamedTuple):
    """What stands between W_in and the scan."""

    conv: ConvTensors
    dt_low: list[Tensor]  # per direction, (batch, rank, length, *lanes)
    scan: ScanTensors


def mix(xz: Tensor, directions: Sequence[Direction], out_weight: Tensor, out_bias: Tensor | None) -> Tensor:
    """W_out ((scan(u_f) + reverse_scan(u_b)) * silu(z)) of xz (batch, 2 inner, length, *lanes) = W_in x.

    directions: one (causal) or two (causal, anticausal). Differentiable as its backend is.
    """
    scan = _inputs(xz, directions).scan
    y, _ = _backend(scan.u).scan(scan, _way(directions), SUM, True, False)
    return project(y, out_weight, out_bias)


def mix_lean(xz: Tensor, directions: Sequence[Direction], out_weight: Tensor, out_bias: Tensor | None) -> Tensor:
    """`mix`, keeping only xz for the backward pass. Differentiable once. Backends with operators only."""
    return _LeanMix.apply(xz, out_weight, out_bias, *(tensor for own in directions for tensor in own))


def can_be_lean(x: Tensor) -> bool:
    """Whether `mix_lean` can be called: the backend that takes sequences like x has operators, which it needs, and
    no compiler is to trace its formula."""
    return _backend(x).operators is not None and not torch.compiler.is_compiling()


def is_transformed() -> bool:
    """Whether torch.func or forward mode is at work, through which only plain autograd can be led."""
    return torch._C._are_functorch_transforms_active() or validation.is_forward_mode()


class _LeanMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xz, out_weight, out_bias, *parameters):
        ctx.save_for_backward(xz, out_weight, out_bias, *parameters)
        ctx.low = validation.autocast_dtype(xz)
        return mix(xz, _directions(parameters), out_weight, out_bias).detach()  # as in project.py

    @staticmethod
    @differentiable_once
    def backward(ctx, dout):
        xz, out_weight, out_bias, *parameters = ctx.saved_tensors
        needs_xz, needs_out_weight, needs_out_bias, *needs_own = ctx.needs_input_grad
        directions, wanted = _directions(parameters), _directions(needs_own)
        with autocast_to(xz.device.type, ctx.low):
            inputs = _inputs(xz, directions)
        with autocast_to(xz.device.type, None):
            dout_bias = bias_gradient(dout).to(out_bias.dtype) if needs_out_bias else None
            if not needs_xz and not any(needs_own):
                y, _ = _backend(xz).scan(inputs.scan, _way(directions), SUM, True, False)
                return None, weight_gradient(dout, y).to(out_weight.dtype), dout_bias, *(None for _ in needs_own)
            dy = product(dout, out_weight.to(dout.dtype).t())
            needs = _needs(inputs.scan, _OF_SCAN, wanted, None if needs_xz else "z")
            needs |= NEEDS_Y if needs_out_weight else 0
            gradients, y = _scan_gradients(dy, inputs.scan, _way(directions), needs)
            dout_weight = weight_gradient(dout, y).to(out_weight.dtype) if needs_out_weight else None
            del dy, y, dout
            dxz, dparameters = _input_gradients(inputs, gradients, directions, wanted, needs_xz)
        return None if dxz is None else dxz.to(xz.dtype), dout_weight, dout_bias, *dparameters


def _directions(parameters: Sequence[Tensor]) -> list[Direction]:
    size = len(Direction._fields)
    return [Direction(*parameters[start : start + size]) for start in range(0, len(parameters), size)]


def _way(directions: Sequence[Direction]) -> int:
    return BOTH if len(directions) == 2 else FORWARD


def _backend(x: Tensor):
    return backends.select("MambaMixer", x, "auto")


def autocast_to(device_type: str, low: torch.dtype | None):
    """Autocast to `low`, or none for None, whatever holds where backward is called."""
    if low is not None:
        return torch.autocast(device_type, low)
    is_on = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if is_on else nullcontext()


def _inputs(xz: Tensor, directions: Sequence[Direction]) -> _Inputs:
    x, z = xz.chunk(2, dim=1)
    ahead, *rest = directions
    back = rest[0] if rest else None
    conv = ConvTensors(x, wide(ahead.conv_weight), wide(ahead.conv_bias))
    if back:
        conv = conv._replace(weight_b=wide(back.conv_weight), bias_b=wide(back.conv_bias))
    conv = validation.prepare_conv1d("MambaMixer", conv)
    us = _backend(conv.x).conv1d(conv, _way(directions), True)[: len(directions)]

    dt_low, per_direction = [], []
    for own, u in zip(directions, us, strict=True):
        low, B, C = own.split(project(u, own.x_proj))
        dt_low.append(low)
        delta = project(low, own.dt_proj)
        per_direction.append((u, delta, -torch.exp(wide(own.A_log)), B, C, wide(own.D), wide(own.dt_bias)))
    u, delta, A, B, C, D, dt_bias = per_direction[0]
    scan = ScanTensors(u, delta, A, B, C, D, z, dt_bias)
    if back:
        names = ("u_b", "delta_b", "A_b", "B_b", "C_b", "D_b", "delta_bias_b")
        scan = scan._replace(**dict(zip(names, per_direction[1], strict=True)))
    return _Inputs(conv, dt_low, validation.prepare_scan("MambaMixer", scan))


# The parameters of a direction by the names of the operators' arguments.
_OF_SCAN = {"A": "A_log", "D": "D", "delta_bias": "dt_bias"}
_OF_CONV = {"weight": "conv_weight", "bias": "conv_bias"}


def _needs(
    tensors: ScanTensors | ConvTensors, parameters: dict[str, str], wanted: Sequence[Direction], of_xz: str | None
) -> int:
    """Bits of an operator's gradients: all but those of frozen parameters and of `of_xz`, a part of xz."""
    left_out = {of_xz}
    for own, suffix in zip(wanted, ("", "_b"), strict=False):
        left_out |= {name + suffix for name, field in parameters.items() if not getattr(own, field)}
    given = enumerate(zip(tensors._fields, tensors, strict=True))
    return sum(1 << index for index, (name, tensor) in given if tensor is not None and name not in left_out)


def _scan_gradients(dy: Tensor, scan: ScanTensors, way: int, needs: int) -> tuple[ScanTensors, Tensor]:
    """Gradients of what the scan was given, empty where they are not needed, and its output."""
    *gradients, y = _backend(scan.u).operators.scan_backward(dy, None, *scan, way, SUM, True, needs)
    return ScanTensors(*gradients), y


def _input_gradients(
    inputs: _Inputs,
    gradients: ScanTensors,
    directions: Sequence[Direction],
    wanted: Sequence[Direction],
    needs_xz: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """From the scan's gradients to those of xz and of the parameters of all directions, None where nobody wants them.
    wanted: which, of the directions' parameters."""
    scan, conv, way = inputs.scan, inputs.conv, _way(directions)
    dus, dprojections = [], []
    for own, needs, suffix, dt_low in zip(directions, wanted, ("", "_b"), inputs.dt_low, strict=False):
        u, A = getattr(scan, f"u{suffix}"), getattr(scan, f"A{suffix}")
        du, ddelta, dA, dB, dC, dD, dbias = (
            getattr(gradients, f"{name}{suffix}") for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")
        )
        ddt_low = product(ddelta, own.dt_proj.to(ddelta.dtype).t())
        dprojected = torch.cat((ddt_low, dB, dC), dim=1)
        dus.append(du.add_(product(dprojected, own.x_proj.to(u.dtype).t())))
        dprojections.append(
            (
                weight_gradient(dprojected, u) if needs.x_proj else None,
                weight_gradient(ddelta, dt_low) if needs.dt_proj else None,
                dbias,
                dA * A if needs.A_log else None,
                dD,
            )
        )
    dus += [dus[0].new_empty((0,))] * (2 - len(dus))
    dx, dfilters = None, [None] * 4
    if conv_needs := _needs(conv, _OF_CONV, wanted, None if needs_xz else "x"):
        dx, *dfilters = _backend(conv.x).operators.conv1d_backward(*dus, *conv, way, True, conv_needs)
    dparameters: list[Tensor | None] = []
    for index, (own, needs) in enumerate(zip(directions, wanted, strict=True)):
        dfilter, dprojection = dfilters[2 * index : 2 * index + 2], dprojections[index]
        of_own = zip((*dfilter, *dprojection), own, needs, strict=True)
        dparameters += [d.to(p.dtype) if is_wanted else None for d, p, is_wanted in of_own]
    return torch.cat((dx, gradients.z), dim=1) if needs_xz else None, dparameters


def wide(parameter: Tensor) -> Tensor:
    """The parameter in the dtype in which the kernels take parameters."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))

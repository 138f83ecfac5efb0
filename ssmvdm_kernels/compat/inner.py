"""What the fused functions of mamba-ssm and Vim have in common: all between a layer's first projection and its last."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..conv import causal_conv1d
from ..mixing import autocast_to
from ..project import project
from ..scan import bidirectional_selective_scan, selective_scan
from ..validation import check_flag
from .arguments import LayerTensors, check_layer


class Norms(NamedTuple):
    """Weights of RMS norms on B, C and delta, each (its channels,) or None, and their epsilon."""

    B: Tensor | None = None
    C: Tensor | None = None
    delta: Tensor | None = None
    eps: float = 1e-6


class Modulation(NamedTuple):
    """What depends on the input in a selective scan; B and C may also be constant, (channels, states)."""

    delta: Tensor  # (batch, channels, length)
    B: Tensor  # (batch, states, length)
    C: Tensor


def modulate(
    u: Tensor,
    x_proj: Tensor,
    delta_proj: Tensor,
    states: int,
    B: Tensor | None = None,
    C: Tensor | None = None,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    norms: Norms | None = None,
) -> Modulation:
    """delta, B and C of u (batch, channels, length): x_proj u is split into delta's low rank, B and C.

    A B or C that is given is constant in time, and x_proj has no rows for it. The biases are added to B and C before
    their norms.
    """
    norms = norms or Norms()
    projected = project(u, x_proj)
    low = projected[:, : delta_proj.shape[1]]
    delta = _normed(project(low, delta_proj), norms.delta, norms.eps)
    if B is None:
        B = _biased(projected[:, low.shape[1] : low.shape[1] + states], B_bias)
        B = _normed(B, norms.B, norms.eps)
    if C is None:
        C = _normed(_biased(projected[:, projected.shape[1] - states :], C_bias), norms.C, norms.eps)
    return Modulation(delta, B, C)


def inner(
    caller: str,
    tensors: LayerTensors,
    delta_softplus: bool,
    *required: str,
    is_recomputed: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """A fused function: (batch, length, out), or (batch, channels, length) where it has no last projection."""
    check_flag(caller, "delta_softplus", delta_softplus)
    check_layer(caller, tensors, *required)
    y = recomputed(is_recomputed, convolve_and_scan, tensors, delta_softplus, eps)
    if tensors.out_proj_weight is None:
        return y
    return project_out(y, tensors.out_proj_weight, tensors.out_proj_bias)


def convolve_and_scan(t: LayerTensors, delta_softplus: bool, eps: float = 1e-6) -> Tensor:
    """scan(silu(conv(x)), ...) * silu(z) of xz: (batch, channels, length).

    With A_b the scan runs in both directions, which share all but A and are summed: Vim's first form.
    """
    x, z = t.xz.chunk(2, dim=1)
    u = causal_conv1d(x, t.conv1d_weight.flatten(1), t.conv1d_bias)
    norms = Norms(t.b_rms_weight, t.c_rms_weight, t.dt_rms_weight, eps)
    delta, B, C = modulate(
        u, t.x_proj_weight, t.delta_proj_weight, t.A.shape[1], t.B, t.C, t.B_proj_bias, t.C_proj_bias, norms
    )
    arguments = (u, delta, t.A, B, C, t.D, z, t.delta_bias, delta_softplus)
    if t.A_b is None:
        return selective_scan(*arguments)
    return bidirectional_selective_scan(*arguments, A_b=t.A_b)


def recomputed(is_recomputed: bool, function, *arguments, **options):
    """function(*arguments, **options); if `is_recomputed`, autograd keeps the arguments and computes it again."""
    if not is_recomputed or not torch.is_grad_enabled():
        return function(*arguments, **options)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


def project_out(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight y + bias of y (batch, channels, length) as those packages arrange it: (batch, length, out)."""
    return project(y, weight, None if bias is None else bias.to(weight.dtype)).transpose(1, 2)


def without_autocast(first: object):
    """A context in which the scan takes its tensors in the dtypes that they have, as the functions it stands for do."""
    return autocast_to(first.device.type, None) if isinstance(first, Tensor) else nullcontext()


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype).unsqueeze(1)


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm over the channels, computed in float32 (float64 for float64)."""
    if weight is None:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.movedim(1, -1).to(wide), weight.shape, weight.to(wide), eps).movedim(-1, 1).to(x.dtype)

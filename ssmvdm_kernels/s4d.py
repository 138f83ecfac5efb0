"""The diagonal complex scan (S4D), in one direction and in both, as a plain loop over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def s4d_scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """h_t = decay h_{t-1} + u_t;  y_t = (2 Re sum_n weight_n h_n,t + D u_t) * silu(z_t).

    u, z: (batch, channels, length, *lanes); decay, weight: (channels, modes), complex; D: (channels,).
    `reverse=True` runs t = length-1 .. 0 on tensors in natural time order.
    """
    y = _one_direction(u, decay, weight, D, reverse)
    return (y if z is None else y * F.silu(z)).to(u.dtype)


def bidirectional_s4d_scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    u_b: Tensor | None = None,
    decay_b: Tensor | None = None,
    weight_b: Tensor | None = None,
    D_b: Tensor | None = None,
    merge: str = "sum",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Both directions of `s4d_scan`, merged and gated as in `bidirectional_selective_scan`."""
    ahead = _one_direction(u, decay, weight, D, False)
    back = _one_direction(
        u if u_b is None else u_b,
        decay if decay_b is None else decay_b,
        weight if weight_b is None else weight_b,
        D if D_b is None else D_b,
        True,
    )
    gate = 1 if z is None else F.silu(z)
    if merge in ("sum", "mean"):
        return (((ahead + back) * (0.5 if merge == "mean" else 1)) * gate).to(u.dtype)
    pair = (ahead * gate).to(u.dtype), (back * gate).to(u.dtype)
    return pair if merge == "none" else torch.cat(pair, dim=1)


def _one_direction(u: Tensor, decay: Tensor, weight: Tensor, D: Tensor | None, reverse: bool) -> Tensor:
    beside = (1,) * (u.dim() - 3)
    wide = u.to(torch.promote_types(u.dtype, torch.float32))
    h = torch.zeros((), dtype=decay.dtype, device=u.device)
    y: list = [None] * u.shape[2]
    factor, read = (parameter.view(*parameter.shape, *beside) for parameter in (decay, weight))
    for t in reversed(range(u.shape[2])) if reverse else range(u.shape[2]):
        h = factor * h + wide[:, :, t].unsqueeze(2)  # (batch, channels, modes, *lanes)
        y[t] = 2 * (read * h).sum(2).real
    out = torch.stack(y, dim=2)
    return out if D is None else out + D.view(-1, 1, *beside) * wide

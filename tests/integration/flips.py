"""Mamba layers as other packages arrange them, spelt out: a loop over time, and flips around the reverse direction.

All functions take the state dict of the layer and compute in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(u, delta, A, B, C, D, z=None, delta_bias=None) -> Tensor:
    """u, delta, z (batch, channels, length); B, C (batch, states, length) or (channels, states)."""
    if delta_bias is not None:
        delta = delta + delta_bias.unsqueeze(-1)
    delta = F.softplus(delta)
    h, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[-1]):
        B_t, C_t = (M if M.dim() == 2 else M[:, None, :, t] for M in (B, C))
        step = delta[..., t, None]
        h = torch.exp(step * A) * h + step * u[..., t, None] * B_t
        outputs.append((h * C_t).sum(-1))
    y = torch.stack(outputs, -1) + D.unsqueeze(-1) * u
    return y if z is None else y * F.silu(z)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Causal, with silu; weight (channels, 1, width)."""
    return F.silu(F.conv1d(F.pad(x, (weight.shape[-1] - 1, 0)), weight, bias, groups=x.shape[1]))


def modulations(u: Tensor, x_proj: Tensor, dt_proj: Tensor, states: int) -> tuple[Tensor, Tensor, Tensor]:
    low, B, C = F.linear(u.mT, x_proj).split((dt_proj.shape[1], states, states), dim=-1)
    return F.linear(low, dt_proj).mT, B.mT, C.mT


def vim(state: dict[str, Tensor], x: Tensor, kind: str, is_halved: bool = False) -> Tensor:
    """Vim's layer on x (batch, length, channels); kind is its bimamba_type."""
    x_, z = F.linear(x, state["in_proj.weight"], state.get("in_proj.bias")).mT.chunk(2, 1)

    def one_way(x_, z, suffix, A_log):
        weight = state[f"conv1d{suffix}.weight"]
        u = convolve(x_, weight, state.get(f"conv1d{suffix}.bias"))
        projections = (state[f"{name}{suffix}.weight"] for name in ("x_proj", "dt_proj"))
        delta, B, C = modulations(u, *projections, states=A_log.shape[1])
        return u, delta, -A_log.exp(), B, C, state[f"D{suffix}"], z, state[f"dt_proj{suffix}.bias"]

    arguments = one_way(x_, z, "", state["A_log"])
    y = scan(*arguments)
    if kind == "v1":
        u, delta, _, B, C, D, z, bias = arguments
        u, delta, B, C, z = (tensor.flip(-1) for tensor in (u, delta, B, C, z))
        y = y + scan(u, delta, -state["A_b_log"].exp(), B, C, D, z, bias).flip(-1)
    elif kind == "v2":
        y = y + scan(*one_way(x_.flip(-1), z.flip(-1), "_b", state["A_b_log"])).flip(-1)
        y = y / 2 if is_halved else y
    out = F.linear(y.mT, state["out_proj.weight"], state.get("out_proj.bias"))
    return out * state["gamma"] if "gamma" in state else out


def paper_mamba(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The paper's bidirectional S6 layer, mixer "Mamba/Vim", on x (sequences, frames, channels)."""
    x_, z = F.linear(x, state["fc_init.weight"], state["fc_init.bias"]).mT.chunk(2, 1)

    def one_way(x_, z, suffix):
        u = convolve(x_, state[f"conv{suffix}.weight"], state[f"conv{suffix}.bias"])
        own = {name.removeprefix(f"s6{suffix}."): value for name, value in state.items()}
        A = -own["A_log"].exp()
        delta, B, C = modulations(u, own["x_proj.weight"], own["dt_proj.weight"], A.shape[1])
        return scan(u, delta, A, B, C, own["D"], z, own["dt_proj.bias"])

    y = one_way(x_, z, "") + one_way(x_.flip(-1), z.flip(-1), "_rev").flip(-1)
    return F.linear(y.mT, state["fc_out.weight"], state["fc_out.bias"])

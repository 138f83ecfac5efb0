"""S6: the selective state-space sequence map of Mamba over frames, forward alone or in both directions of time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvdm.temporal.pointwise import Pointwise, project, wide
from ssmvdm_kernels import bidirectional_selective_scan, selective_scan


class S6(nn.Module):
    """Selective scan whose step, input and output weights are linear in its input (Gu and Dao, Mamba, section 3.2):

        (r, B, C) = W_x u        delta = softplus(W_dt r + b_dt)        A = -exp(A_log)
        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t                  y_t = <C_t, h_t> + D u_t

    u: (b, channels, f, h, w), every pixel for itself. With two directions the second one, `anticausal`, has parameters
    of its own and runs from the last frame to the first; both run in one call, on tensors in natural time order.
    """

    activation = staticmethod(F.silu)  # what the published layers put between this map and a GLU

    def __init__(self, channels: int, states: int = 16, directions: int = 2):
        super().__init__()
        self.causal = S6Direction(channels, states)
        self.anticausal = S6Direction(channels, states) if directions == 2 else None

    def forward(self, u: Tensor, u_b: Tensor | None = None, *, z: Tensor | None = None, merge: str = "sum"):
        """y gated by silu(z), its directions merged as `bidirectional_selective_scan` says; "none" gives a tuple.

        u_b: the reverse direction's input, None for u. With one direction there is nothing to merge: y, or (y,).
        """
        ahead, back = self.causal, self.anticausal
        if back is None:
            delta, B, C = ahead.modulate(u)
            y = selective_scan(u, delta, ahead.A(), B, C, wide(ahead.D), z, wide(ahead.dt_bias), True)
            return (y,) if merge == "none" else y
        if u_b is None:
            (delta, B, C), (delta_b, B_b, C_b) = _modulate_both(u, ahead, back)
        else:
            (delta, B, C), (delta_b, B_b, C_b) = ahead.modulate(u), back.modulate(u_b)
        return bidirectional_selective_scan(
            u, delta, ahead.A(), B, C, wide(ahead.D), z, wide(ahead.dt_bias), True,
            u_b=u_b, delta_b=delta_b, A_b=back.A(), B_b=B_b, C_b=C_b,
            D_b=wide(back.D), delta_bias_b=wide(back.dt_bias), merge=merge,
        )  # fmt: skip


class S6Direction(nn.Module):
    """The parameters of one direction of time.

    Initialised as in Mamba: A = -(1..states), D = 1, W_dt uniform in +-rank^-1/2 with rank = ceil(channels / 16), and a
    bias that makes softplus(dt_bias) log-uniform in [1e-3, 1e-1], floored at 1e-4.
    """

    def __init__(self, channels: int, states: int):
        super().__init__()
        rank = math.ceil(channels / 16)
        self.sizes = (rank, states, states)
        self.x_proj = Pointwise(channels, sum(self.sizes), bias=False)
        self.dt_proj = Pointwise(rank, channels, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(channels))
        self.A_log = nn.Parameter(torch.empty(channels, states))
        self.D = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        rank, states, _ = self.sizes
        self.x_proj.reset_parameters()
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log.copy_(torch.arange(1, states + 1, device=self.A_log.device).log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def modulate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta (b, channels, f, h, w) before bias and softplus; B and C (b, states, f, h, w)."""
        low, B, C = self.x_proj(u).split(self.sizes, dim=1)
        return self.dt_proj(low), B, C

    def A(self) -> Tensor:
        return -torch.exp(wide(self.A_log))  # (channels, states)


def _modulate_both(u: Tensor, ahead: S6Direction, back: S6Direction):
    """`modulate` of both directions with one read of u."""
    both = project(u, torch.cat((ahead.x_proj.weight, back.x_proj.weight)))
    low, B, C, low_b, B_b, C_b = both.split((*ahead.sizes, *back.sizes), dim=1)
    return (ahead.dt_proj(low), B, C), (back.dt_proj(low_b), B_b, C_b)

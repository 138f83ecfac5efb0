"""S6: the selective state-space sequence map of Mamba over frames, forward alone or in both directions of time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvdm.temporal.pointwise import project, wide
from ssmvdm_kernels import bidirectional_selective_scan, selective_scan
from ssmvdm_kernels.modules import S6Parameters


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
        rank = math.ceil(channels / 16)
        self.causal = S6Parameters(channels, states, rank)
        self.anticausal = S6Parameters(channels, states, rank) if directions == 2 else None

    def forward(self, u: Tensor, u_b: Tensor | None = None, *, z: Tensor | None = None, merge: str = "sum"):
        """y gated by silu(z), its directions merged as `bidirectional_selective_scan` says; "none" gives a tuple.

        u_b: the reverse direction's input, None for u. With one direction there is nothing to merge: y, or (y,).
        """
        ahead, back = self.causal, self.anticausal
        if back is None:
            delta, B, C = _modulate(ahead, u)
            y = selective_scan(u, delta, ahead.A(), B, C, wide(ahead.D), z, wide(ahead.dt_bias), True)
            return (y,) if merge == "none" else y
        if u_b is None:
            (delta, B, C), (delta_b, B_b, C_b) = _modulate_both(u, ahead, back)
        else:
            (delta, B, C), (delta_b, B_b, C_b) = _modulate(ahead, u), _modulate(back, u_b)
        return bidirectional_selective_scan(
            u, delta, ahead.A(), B, C, wide(ahead.D), z, wide(ahead.dt_bias), True,
            u_b=u_b, delta_b=delta_b, A_b=back.A(), B_b=B_b, C_b=C_b,
            D_b=wide(back.D), delta_bias_b=wide(back.dt_bias), merge=merge,
        )  # fmt: skip


def _modulate(own: S6Parameters, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """delta (b, channels, f, h, w) before bias and softplus; B and C (b, states, f, h, w)."""
    low, B, C = project(u, own.x_proj.weight).split(own.sizes, dim=1)
    return project(low, own.dt_proj.weight), B, C


def _modulate_both(u: Tensor, ahead: S6Parameters, back: S6Parameters):
    """`_modulate` of both directions with one read of u."""
    both = project(u, torch.cat((ahead.x_proj.weight, back.x_proj.weight)))
    low, B, C, low_b, B_b, C_b = both.split((*ahead.sizes, *back.sizes), dim=1)
    return (project(low, ahead.dt_proj.weight), B, C), (project(low_b, back.dt_proj.weight), B_b, C_b)

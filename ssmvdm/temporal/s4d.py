"""S4D: the diagonal state-space sequence map over frames, forward alone or in both directions of time.

It is linear and the same at every frame, so it can be computed as a recurrence ("scan", linear in frames, no
workspace) or, as published, as a convolution by Fourier transform ("fft"). The two agree to rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvdm.temporal.pointwise import wide
from ssmvdm_kernels import bidirectional_s4d_scan, s4d_scan


class S4D(nn.Module):
    """Diagonal state-space map (Gu et al., S4D, arXiv 2206.11893, equation 6) of every channel and pixel for itself:

        h_n,t = exp(dt A_n) h_n,t-1 + u_t        y_t = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n h_n,t + D u_t

    with A_n = -exp(log_A_real) + i A_imag and dt = exp(log_dt). Equivalently y is the causal convolution of u with
    k_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l), plus D u.

    u: (b, channels, f, h, w). `states` real states are states / 2 complex modes. With two directions the second one,
    `anticausal`, has parameters of its own and runs from the last frame to the first, in natural time order.
    """

    activation = staticmethod(F.gelu)  # what the published layers put between this map and a GLU

    def __init__(self, channels: int, states: int = 16, directions: int = 2, form: str = "scan"):
        super().__init__()
        self.form = form
        self.causal = S4DDirection(channels, states // 2)
        self.anticausal = S4DDirection(channels, states // 2) if directions == 2 else None

    def forward(self, u: Tensor, u_b: Tensor | None = None, *, z: Tensor | None = None, merge: str = "sum"):
        """y gated by silu(z), its directions merged as `bidirectional_selective_scan` says; "none" gives a tuple.

        u_b: the reverse direction's input, None for u. With one direction there is nothing to merge: y, or (y,).
        """
        ahead, back = self.causal, self.anticausal
        if self.form == "fft":
            directions = [_convolve(u, ahead, False)]
            if back is not None:
                directions.append(_convolve(u if u_b is None else u_b, back, True))
            return _merged(directions, z, merge)
        decay, weight = ahead.discretised()
        if back is None:
            y = s4d_scan(u, decay, weight, wide(ahead.D), z)
            return (y,) if merge == "none" else y
        decay_b, weight_b = back.discretised()
        return bidirectional_s4d_scan(
            u, decay, weight, wide(ahead.D), z,
            u_b=u_b, decay_b=decay_b, weight_b=weight_b, D_b=wide(back.D), merge=merge,
        )  # fmt: skip


class S4DDirection(nn.Module):
    """The parameters of one direction of time; C is complex, stored as (channels, modes, 2) real numbers.

    Initialised as S4D-Lin: A_n = -1/2 + i pi n, log dt uniform in [log 1e-3, log 1e-1] per channel, C complex normal,
    D normal.
    """

    def __init__(self, channels: int, modes: int):
        super().__init__()
        self.log_dt = nn.Parameter(torch.empty(channels))
        self.log_A_real = nn.Parameter(torch.empty(channels, modes))
        self.A_imag = nn.Parameter(torch.empty(channels, modes))
        self.C = nn.Parameter(torch.empty(channels, modes, 2))
        self.D = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.uniform_(self.log_dt, math.log(1e-3), math.log(1e-1))
        nn.init.constant_(self.log_A_real, math.log(0.5))
        modes = self.A_imag.shape[1]
        self.A_imag.copy_(math.pi * torch.arange(modes, device=self.A_imag.device).expand_as(self.A_imag))
        nn.init.normal_(self.C, std=0.5**0.5)  # variance 1 for the complex number
        nn.init.normal_(self.D)

    def exponents(self) -> tuple[Tensor, Tensor]:
        """A and dt A, each (channels, modes), complex."""
        A = torch.complex(-torch.exp(wide(self.log_A_real)), wide(self.A_imag))
        return A, A * torch.exp(wide(self.log_dt))[:, None]

    def discretised(self) -> tuple[Tensor, Tensor]:
        """decay = exp(dt A) and weight = C (exp(dt A) - 1) / A, each (channels, modes), complex."""
        A, dt_A = self.exponents()
        return torch.exp(dt_A), torch.view_as_complex(wide(self.C)) * torch.expm1(dt_A) / A

    def kernel(self, frames: int) -> Tensor:
        """k_0 .. k_{frames-1}: (channels, frames). The powers of decay are a Vandermonde matrix."""
        _, weight = self.discretised()
        _, dt_A = self.exponents()
        powers = torch.exp(dt_A[..., None] * torch.arange(frames, device=dt_A.device))  # (channels, modes, frames)
        return 2 * torch.einsum("cn,cnl->cl", weight, powers).real


def _convolve(u: Tensor, direction: S4DDirection, is_reverse: bool) -> Tensor:
    """Kernel of one direction with u over time, by Fourier transforms of double length, which do not wrap around.

    The conjugate spectrum of the kernel is its mirror image: the reverse direction needs no flip.
    """
    frames = u.shape[2]
    beside = (1,) * (u.dim() - 3)
    x = wide(u)
    spectrum = torch.fft.rfft(direction.kernel(frames), n=2 * frames)  # (channels, frames + 1)
    spectrum = (spectrum.conj() if is_reverse else spectrum).view(*spectrum.shape, *beside)
    y = torch.fft.irfft(torch.fft.rfft(x, n=2 * frames, dim=2) * spectrum, n=2 * frames, dim=2)
    y = y.narrow(2, 0, frames) + wide(direction.D).view(-1, 1, *beside) * x
    return y.to(u.dtype)


def _merged(directions: list[Tensor], z: Tensor | None, merge: str) -> Tensor | tuple[Tensor, ...]:
    """The directions, one or two, in the forms of `merge`, gated."""
    if merge == "sum":
        directions = [sum(directions[1:], directions[0])]
    if z is not None:
        gate = F.silu(z)
        directions = [y * gate for y in directions]
    if merge == "none":
        return tuple(directions)
    return directions[0] if len(directions) == 1 else torch.cat(directions, dim=1)

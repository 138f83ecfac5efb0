"""What a scan stands beside in other networks: an S4D layer, attention. See `rivals`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

S4D_STATES = 64  # as the paper's S4D layers are usually run; half as many complex modes
HEAD_WIDTH = 64

Tensors = dict[str, Tensor]


def s4d_tensors(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
    """S4D layer of both directions: complex modes (channels, S4D_STATES / 2), one skip weight per direction."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    modes = S4D_STATES // 2
    tensors = {"u": normal(sequences, channels, length)}
    for suffix in ("", "_b"):
        tensors["log_dt" + suffix] = torch.empty(channels).uniform_(-6.9, -2.3, generator=generator)
        tensors["log_A_real" + suffix] = torch.full((channels, modes), 0.5).log()
        tensors["A_imag" + suffix] = (torch.pi * torch.arange(modes)).repeat(channels, 1)
        tensors["C" + suffix] = normal(channels, modes, 2)
        tensors["D" + suffix] = normal(channels)
    return tensors


def _s4d_terms(tensors: Tensors, suffix: str) -> tuple[Tensor, Tensor]:
    """Exponent dt A and coefficient 2 C (exp(dt A) - 1) / A of every mode, complex (channels, modes)."""
    A = torch.complex(-torch.exp(tensors["log_A_real" + suffix]), tensors["A_imag" + suffix])
    exponent = A * torch.exp(tensors["log_dt" + suffix])[:, None]
    return exponent, 2 * torch.view_as_complex(tensors["C" + suffix]) * (torch.exp(exponent) - 1) / A


def _s4d_kernel(tensors: Tensors, suffix: str, length: int) -> Tensor:
    """k_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l): (channels, length)."""
    exponent, coefficient = _s4d_terms(tensors, suffix)
    powers = torch.exp(exponent[..., None] * torch.arange(length))
    return torch.einsum("dn,dnl->dl", coefficient, powers).real


def s4d_fft(tensors: Tensors) -> Tensor:
    """Both directions as one two-sided convolution by FFT of twice the length."""
    u = tensors["u"]
    length = u.shape[-1]
    ahead, back = (_s4d_kernel(tensors, suffix, length) for suffix in ("", "_b"))
    # Tap l of the reverse kernel acts on u_{t+l}, which a circular convolution of 2 length has at index 2 length - l.
    gap = torch.zeros_like(back[:, :1])
    kernel = torch.cat([ahead[:, :1] + back[:, :1], ahead[:, 1:], gap, back[:, 1:].flip(-1)], dim=-1)
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return y + (tensors["D"] + tensors["D_b"])[:, None] * u


def s4d_scan_tensors(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
    """Those of the layer, channels-last."""
    tensors = s4d_tensors(sequences, channels, length, states, generator)
    return tensors | {"u": tensors["u"].transpose(1, 2).contiguous().transpose(1, 2)}


def s4d_scan(tensors: Tensors) -> Tensor:
    """The same layer by our recurrence, both directions in one call."""
    from ssmvdm_kernels import bidirectional_s4d_scan

    coefficients = {}
    for suffix in ("", "_b"):
        exponent, coefficient = _s4d_terms(tensors, suffix)
        coefficients |= {"decay" + suffix: torch.exp(exponent), "weight" + suffix: coefficient / 2}
    skips = {name: tensors[name] for name in ("D", "D_b")}
    return bidirectional_s4d_scan(tensors["u"], **coefficients, **skips, backend="cpu")


def s4d_matrix(tensors: Tensors) -> Tensor:
    """The same by the dense (length x length) matrix of the two kernels."""
    u = tensors["u"]
    time = torch.arange(u.shape[-1])
    lag = time[:, None] - time[None, :]
    kernels = [_s4d_kernel(tensors, suffix, len(time))[:, sign.clamp(min=0)] * (sign >= 0) for suffix, sign in
               (("", lag), ("_b", -lag))]  # fmt: skip
    return torch.einsum("dts,nds->ndt", sum(kernels), u) + (tensors["D"] + tensors["D_b"])[:, None] * u


def attention_tensors(heads: Callable[[int], tuple[int, int]]):
    """Maker of q, k, v (sequences, heads, length, width); heads: number and width for a channel count."""

    def make(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
        number, width = heads(channels)
        shape = (sequences, number, length, width)
        return {name: torch.randn(shape, generator=generator, device=generator.device) for name in "qkv"}

    return make


def sdpa(tensors: Tensors) -> Tensor:
    return F.scaled_dot_product_attention(tensors["q"], tensors["k"], tensors["v"])


def softmax_attention(tensors: Tensors) -> Tensor:
    scores = tensors["q"] @ tensors["k"].transpose(-1, -2) * tensors["q"].shape[-1] ** -0.5
    return torch.softmax(scores, dim=-1) @ tensors["v"]


def equal_heads(channels: int) -> tuple[int, int]:
    """Number and width of heads that together have so many channels, at most 64 wide where that divides."""
    number = next(n for n in range(-(-channels // HEAD_WIDTH), channels + 1) if channels % n == 0)
    return number, channels // number

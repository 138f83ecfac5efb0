"""The temporal layers as published, in plain torch operations of any dtype: in float64 the truth a layer is gated
against, in float32 the yardstick of its rounding error. Nothing here calls the code under test; only its weights."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def by_unbind(x: Tensor) -> Sequence[Tensor]:
    """The time steps (axis 2) of x; its gradient is put together once."""
    return x.unbind(2)


def by_index(x: Tensor) -> Sequence[Tensor]:
    """The same step by step, as mamba-ssm's loop takes them: every step's gradient is as large as x."""
    return [x[:, :, time] for time in range(x.shape[2])]


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, *, steps_of=by_unbind
) -> Tensor:
    """Causal selective scan the way mamba-ssm's own reference does it: all factors exp(delta A) and delta u B at once,
    a Python loop over time, states summed by einsum. u, delta, z (b, d, l); A (d, n); B, C (b, n, l) -> (b, d, l)."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h = decay.new_zeros(decay.shape[0], decay.shape[1], decay.shape[3])
    steps = []
    for decay_t, drive_t, C_t in zip(steps_of(decay), steps_of(drive), steps_of(C), strict=True):
        h = decay_t * h + drive_t
        steps.append(torch.einsum("bdn,bn->bd", h, C_t))
    y = torch.stack(steps, dim=-1)
    y = y if D is None else y + u * D[:, None]
    return y if z is None else y * F.silu(z)


Maps = dict[str, Callable[[Tensor], Tensor]]  # the sequence map of each direction


def temporal_layer(
    layer: nn.Module,
    x: Tensor,
    position_bias: Tensor | None = None,
    weights: Mapping[str, Tensor] | None = None,
    scan: Callable[..., Tensor] = selective_scan,
) -> Tensor:
    """What `layer` computes of x (b, c, f, h, w), in x's dtype. TypeError for a layer this module does not know.

    weights: tensors in the place of the layer's parameters, by their names; gradients reach these, and none without.
    scan: what runs one direction of S6, with the arguments of `selective_scan`.
    """
    sequences = x.permute(0, 3, 4, 2, 1).flatten(0, 2)  # (b h w, f, c)
    if weights is None:
        weights = {name: parameter.detach().to(x.dtype) for name, parameter in layer.named_parameters()}
    kind = type(layer).__name__
    if kind == "TemporalAttention":
        bias = None if position_bias is None else position_bias.to(x.dtype)
        y = _attention(sequences, weights, layer.heads, bias)
    elif kind == "TemporalLinearAttention":
        y = _linear_attention(sequences, weights, layer.heads)
    elif kind == "StateSpaceLayer":
        y = _state_space_layer(sequences, layer, weights, scan)
    else:
        raise TypeError(f"no plain form of temporal layer {kind}")
    b, _, f, h, w = x.shape
    return y.reshape(b, h, w, f, -1).permute(0, 4, 3, 1, 2)


def _heads(x: Tensor, weights: dict, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v each (sequences, heads, frames, dim_head), q and k with their rotary embedding."""
    q, k, v = (x @ weights["to_qkv.weight"].T).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return _rotate(q), _rotate(k), v


def _rotate(x: Tensor) -> Tensor:
    """Feature pairs as complex numbers, times exp(i t w_j), w_j = 10000^(-2 j / dim) (RoFormer, eq. 34)."""
    dim = min(32, x.shape[-1])
    complex_dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle).to(x.device, complex_dtype)
    pairs = torch.view_as_complex(x[..., :dim].unflatten(-1, (-1, 2)).contiguous())
    return torch.cat([torch.view_as_real(pairs * turn).flatten(-2), x[..., dim:]], dim=-1)


def _merge_heads(y: Tensor, weights: dict) -> Tensor:
    return y.transpose(1, 2).flatten(-2) @ weights["to_out.weight"].T


def _attention(x: Tensor, weights: dict, heads: int, bias: Tensor | None) -> Tensor:
    q, k, v = _heads(x, weights, heads)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    return _merge_heads(torch.softmax(scores, dim=-1) @ v, weights)


def _linear_attention(x: Tensor, weights: dict, heads: int) -> Tensor:
    """The (frames x frames) product first: slower than the layer's own order of products, and independent of it."""
    q, k, v = _heads(x, weights, heads)
    q = torch.softmax(q, dim=-1) * q.shape[-1] ** -0.5
    k = torch.softmax(k, dim=-2)
    return _merge_heads((q @ k.transpose(-1, -2)) @ v, weights)


# -- state-space layers, on sequences (n, d, f), with flips in time as the paper's code runs them ----------------------


def _state_space_layer(x: Tensor, layer: nn.Module, weights: Mapping[str, Tensor], scan: Callable) -> Tensor:
    """x (n, f, d) -> the same. TypeError for a mixer this module does not know."""
    kind = type(layer.mixer).__name__
    if kind not in _MIXERS:
        raise TypeError(f"no plain form of mixer {kind}")
    weights = {_gathered(name.removeprefix("mixer.")): weight for name, weight in weights.items()}
    maps = {name: _sequence_map(weights, name, scan) for name in ("causal", "anticausal") if f"{name}.D" in weights}
    return _MIXERS[kind](x.transpose(1, 2), weights, maps).transpose(1, 2)


def _gathered(name: str) -> str:
    """All of a direction's weights under its name: core.causal.D -> causal.D, causal_conv.bias -> causal.conv_bias."""
    return name.removeprefix("core.").replace("causal_", "causal.", 1).replace("conv.", "conv_")


def _mlp(x: Tensor, weights: dict, maps: Maps) -> Tensor:
    sides = [_turned(name, sequence_map(_turned(name, x))) for name, sequence_map in maps.items()]
    return _feed_forward(F.gelu(torch.cat(sides, dim=1)), weights)


def _glu(x: Tensor, weights: dict, maps: Maps) -> Tensor:
    out = 0
    for name, sequence_map in maps.items():
        y = sequence_map(_turned(name, x))
        y = F.gelu(y) if f"{name}.log_dt" in weights else F.silu(y)
        out = out + _turned(name, F.glu(_linear(y, weights, f"{name}.out"), dim=1))
    return out


def _glu_mlp(x: Tensor, weights: dict, maps: Maps) -> Tensor:
    return _feed_forward(_glu(x, weights, maps), weights)


def _gss(x: Tensor, weights: dict, maps: Maps) -> Tensor:
    product = 1
    for name, sequence_map in maps.items():
        u = F.gelu(_linear(_turned(name, x), weights, f"{name}.in"))
        product = product * _turned(name, _linear(sequence_map(u), weights, f"{name}.out"))
    gate = F.gelu(_linear(x, weights, "shortcut"))
    return _linear(gate * F.gelu(_linear(product, weights, "product_proj")), weights, "out_proj")


def _mamba(x: Tensor, weights: dict, maps: Maps) -> Tensor:
    x, z = _linear(x, weights, "in_proj").chunk(2, dim=1)
    out = 0
    for name, sequence_map in maps.items():
        taps, bias = weights[f"{name}.conv_weight"], weights[f"{name}.conv_bias"]
        padded = F.pad(_turned(name, x), (taps.shape[1] - 1, 0))
        u = F.silu(F.conv1d(padded, taps[:, None], bias, groups=x.shape[1]))
        out = out + _turned(name, sequence_map(u) * F.silu(_turned(name, z)))
    return _linear(out, weights, "out_proj")


_MIXERS = {
    "MlpMixer": _mlp,
    "GluMixer": _glu,
    "GluMlpMixer": _glu_mlp,
    "GssMixer": _gss,
    "GatedConvMixer": _mamba,
    "MambaMixer": _mamba,
    "BidirectionalMamba": _mamba,
}


def _turned(direction: str, x: Tensor) -> Tensor:
    return x.flip(-1) if direction == "anticausal" else x


def _linear(x: Tensor, weights: dict, name: str) -> Tensor:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"][:, None]


def _feed_forward(x: Tensor, weights: dict) -> Tensor:
    return _linear(F.gelu(_linear(x, weights, "fc1")), weights, "fc2")


def _sequence_map(weights: dict, direction: str, scan: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """S6 or S4D of one direction, whichever the weights are of, as a function of u (n, d, f)."""
    own = {name.removeprefix(f"{direction}."): w for name, w in weights.items() if name.startswith(f"{direction}.")}
    return partial(_s4d, own=own) if "log_dt" in own else partial(_s6, own=own, scan=scan)


def _s6(u: Tensor, own: dict, scan: Callable[..., Tensor]) -> Tensor:
    rank, states = own["dt_proj.weight"].shape[1], own["A_log"].shape[1]
    low, B, C = (own["x_proj.weight"] @ u).split((rank, states, states), dim=1)
    A = -torch.exp(own["A_log"])
    return scan(u, own["dt_proj.weight"] @ low, A, B, C, own["D"], None, own["dt_bias"], delta_softplus=True)


def _s4d(u: Tensor, own: dict) -> Tensor:
    """S4D of u (n, d, f) as the paper's code runs it: the kernel by a Vandermonde matrix, the convolution by FFT."""
    frames = u.shape[-1]
    A = torch.complex(-torch.exp(own["log_A_real"]), own["A_imag"])  # (d, modes)
    step = A * torch.exp(own["log_dt"])[:, None]
    weight = torch.view_as_complex(own["C"]) * (torch.exp(step) - 1) / A
    powers = torch.exp(step[..., None] * torch.arange(frames, device=u.device))
    kernel = 2 * torch.einsum("dm,dmf->df", weight, powers).real
    spectrum = torch.fft.rfft(u, n=2 * frames) * torch.fft.rfft(kernel, n=2 * frames)
    return torch.fft.irfft(spectrum, n=2 * frames)[..., :frames] + u * own["D"][:, None]

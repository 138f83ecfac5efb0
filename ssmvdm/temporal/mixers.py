"""The four ways in which the paper wraps a state-space sequence map, and that of the first version of the paper.

Each is written once, for any sequence map S (S6 or S4D) and for one direction of time or two. In the equations S is the
causal direction, S_b the one against time, in natural time order and with parameters of its own; without it, S_b's
term and factor are left out. Everything else works frame by frame and pixel by pixel, on the video as it lies in
memory: nothing is permuted or flipped.

Source: Oshima et al., arXiv 2403.07711, and its first version for "glu-mlp"; gss is that of Mehta et al.
(arXiv 2206.13947) and Wang et al. (BiGS, arXiv 2212.10544), mamba that of Gu and Dao (arXiv 2312.00752) and Zhu et al.
(Vim, arXiv 2401.09417).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvdm import lean
from ssmvdm.temporal.pointwise import Pointwise, wide
from ssmvdm.temporal.registry import register
from ssmvdm.temporal.s4d import S4D
from ssmvdm.temporal.s6 import S6
from ssmvdm_kernels import BidirectionalMamba, bidirectional_conv1d, causal_conv1d
from ssmvdm_kernels.mixing import is_transformed
from ssmvdm_kernels.modules import MambaMixer

if TYPE_CHECKING:
    from ssmvdm.config import TemporalConfig

Core = Callable[[int], S4D | S6]  # a sequence map for that many channels

CONV_WIDTH = 4
EXPAND = 2
FEED_FORWARD_EXPAND = 4  # the usual width of a feed-forward layer
GSS_EXPAND = 3  # that of GSS, and of the published S4D layers


class Mixer(nn.Module):
    """mix(*project(x)), with project and mix the mixer's own: (b, channels, f, h, w) -> same shape.

    With a norm it is the mixer of norm(x), keeping x in its place.

    memory "lean" keeps for backward what `project` returns, and what that itself needs, and computes `mix` again there;
    "fast" keeps what lies between. The numbers are the same, bit for bit.
    """

    mix: Callable[..., Tensor]

    def __init__(self, memory: str = "lean"):
        super().__init__()
        self.memory = memory

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        projected = self.project(x, norm)
        if self.memory == "lean" and torch.is_grad_enabled() and not is_transformed():
            return self.mix_lean(*projected)
        return self.mix(*projected)

    def mix_lean(self, *projected: Tensor) -> Tensor:
        return checkpoint(self.mix, *projected, use_reentrant=False, preserve_rng_state=False)

    def project(self, x: Tensor, norm: nn.Module | None) -> tuple:
        return x, norm


class MlpMixer(Mixer):
    """ "mlp": fc2(gelu(fc1(gelu([S(x); S_b(x)])))), the directions side by side."""

    def __init__(self, channels: int, core: Core, directions: int = 2, linear_dim: int | None = None, **options):
        super().__init__(**options)
        hidden = linear_dim or FEED_FORWARD_EXPAND * channels
        self.core = core(channels)
        self.fc1 = Pointwise(directions * channels, hidden)
        self.fc2 = Pointwise(hidden, channels)

    def mix(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        x = x if norm is None else norm(x)
        return self.fc2(F.gelu(self.fc1(F.gelu(self.core(x, merge="cat")))))


class GluMixer(Mixer):
    """ "glu": G(S(x)) + G_b(S_b(x)), where G(y) = glu(W activation(y)) with W: channels -> 2 channels.

    activation is the sequence map's: GELU after S4D, SiLU after S6.
    """

    def __init__(self, channels: int, core: Core, directions: int = 2, linear_dim: int | None = None, **options):
        super().__init__(**options)
        self.core = core(channels)
        self.causal_out = Pointwise(channels, 2 * channels)
        self.anticausal_out = Pointwise(channels, 2 * channels) if directions == 2 else None

    def mix(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        x = x if norm is None else norm(x)
        y, *y_b = (self.core.activation(y) for y in self.core(x, merge="none"))
        out = F.glu(self.causal_out(y), dim=1)
        for y in y_b:
            out = out + F.glu(self.anticausal_out(y), dim=1)
        return out


class GluMlpMixer(GluMixer):
    """ "glu-mlp": fc2(gelu(fc1(.))) of the mixer "glu", the layer of the paper's first version."""

    def __init__(self, channels: int, core: Core, directions: int = 2, linear_dim: int | None = None, **options):
        super().__init__(channels, core, directions, **options)
        hidden = linear_dim or FEED_FORWARD_EXPAND * channels
        self.fc1 = Pointwise(channels, hidden)
        self.fc2 = Pointwise(hidden, channels)

    def mix(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        return self.fc2(F.gelu(self.fc1(super().mix(x, norm))))


class GssMixer(Mixer):
    """ "gss": W_o (gelu(W_s x) * gelu(fc3(f * f_b))), f = fc2 S(gelu(fc1 x)), f_b = fc2_b S_b(gelu(fc1_b x)).

    W_s and fc3 lead to linear_dim channels.
    """

    def __init__(self, channels: int, core: Core, directions: int = 2, linear_dim: int | None = None, **options):
        super().__init__(**options)
        wide_channels = linear_dim or GSS_EXPAND * channels
        self.core = core(channels)
        self.shortcut = Pointwise(channels, wide_channels)
        self.causal_in = Pointwise(channels, channels)
        self.causal_out = Pointwise(channels, channels)
        is_both = directions == 2
        self.anticausal_in = Pointwise(channels, channels) if is_both else None
        self.anticausal_out = Pointwise(channels, channels) if is_both else None
        self.product_proj = Pointwise(channels, wide_channels)
        self.out_proj = Pointwise(wide_channels, channels)

    def project(self, x: Tensor, norm: nn.Module | None) -> tuple[Tensor, ...]:
        layers = (self.shortcut, self.causal_in, self.anticausal_in)
        return tuple(layer(x, norm) for layer in layers if layer is not None)

    def mix(self, shortcut: Tensor, *inputs: Tensor) -> Tensor:
        y, *y_b = self.core(*(F.gelu(u) for u in inputs), merge="none")
        product = self.causal_out(y)
        for y in y_b:
            product = product * self.anticausal_out(y)
        return self.out_proj(F.gelu(shortcut) * F.gelu(self.product_proj(product)))


class GatedConvMixer(Mixer):
    """ "mamba": (x', z) = W_in x; out = W_out ((S(silu(conv x')) + S_b(silu(conv_b x'))) * silu(z)).

    x' and z have 2 channels each per channel of x; conv is depthwise and causal, conv_b anti-causal.
    """

    def __init__(self, channels: int, core: Core, directions: int = 2, linear_dim: int | None = None, **options):
        super().__init__(**options)
        inner = EXPAND * channels
        self.in_proj = Pointwise(channels, 2 * inner)
        self.causal_conv = DepthwiseFilter(inner)
        self.anticausal_conv = DepthwiseFilter(inner) if directions == 2 else None
        self.core = core(inner)
        self.out_proj = Pointwise(inner, channels)

    def project(self, x: Tensor, norm: nn.Module | None) -> tuple[Tensor, ...]:
        return (self.in_proj(x, norm),)

    def mix(self, xz: Tensor) -> Tensor:
        x, z = xz.chunk(2, dim=1)
        ahead, back = self.causal_conv, self.anticausal_conv
        inputs: tuple[Tensor, ...]
        if back is None:
            inputs = (causal_conv1d(x, wide(ahead.weight), wide(ahead.bias)),)
        else:
            inputs = bidirectional_conv1d(
                x, wide(ahead.weight), wide(ahead.bias), weight_b=wide(back.weight), bias_b=wide(back.bias)
            )
        return self.out_proj(self.core(*inputs, z=z, merge="sum"))

    def mix_lean(self, *projected: Tensor) -> Tensor:
        (xz,) = projected
        if not isinstance(self.core, S4D) or self.core.form != "scan" or not lean.can_mix(xz):
            return super().mix_lean(xz)
        filters = ((own.weight, own.bias) for own in (self.causal_conv, self.anticausal_conv) if own is not None)
        maps = ((*own.discretised(), own.D) for own in (self.core.causal, self.core.anticausal) if own is not None)
        directions = [(*own_filter, *own_map) for own_filter, own_map in zip(filters, maps, strict=True)]
        return lean.s4d_mix(xz, directions, self.out_proj.weight, self.out_proj.bias)


class DepthwiseFilter(nn.Module):
    """One filter in time per channel, weight (channels, width), and a bias; uniform in +-width^-1/2 at first."""

    def __init__(self, channels: int, width: int = CONV_WIDTH):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-(width**-0.5), width**-0.5))


class StateSpaceLayer(nn.Module):
    """A mixer as a temporal layer of the U-Net: (b, c, f, h, w) -> same shape.

    Height and width are the scan's lanes. It takes no position input. With `norm` it is the layer of norm(x), keeping x
    in its place.
    """

    absorbs_norm = True

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(
        self,
        x: Tensor,
        position_bias: Tensor | None = None,
        focus_present: Tensor | None = None,
        norm: nn.Module | None = None,
    ) -> Tensor:
        if norm is None:
            return self.mixer(x)
        if isinstance(self.mixer, Mixer):
            return self.mixer(x, norm)
        first = self.mixer.in_proj
        return self.mixer.finish(lean.norm_project(x, norm.gain, norm.eps, first.weight, first.bias))


MIXERS: dict[str, Callable[..., Mixer]] = {
    "mlp": MlpMixer,
    "glu": GluMixer,
    "glu-mlp": GluMlpMixer,
    "gss": GssMixer,
    "mamba": GatedConvMixer,
}


def _register(layer: str, mixer: str) -> None:
    directions = 2 if layer.startswith("bi-") else 1

    @register(layer, mixer)
    def _build(channels: int, config: TemporalConfig) -> nn.Module:
        if mixer == "mamba" and layer.endswith("s6"):
            options = {"states": config.states, "memory": config.memory}
            if directions == 2:
                return StateSpaceLayer(BidirectionalMamba(channels, **options))
            return StateSpaceLayer(MambaMixer(channels, directions=1, **options))
        core: Core
        if layer.endswith("s4d"):
            core = partial(S4D, states=config.states, directions=directions, form=config.s4d_form)
        else:
            core = partial(S6, states=config.states, directions=directions)
        return StateSpaceLayer(MIXERS[mixer](channels, core, directions, config.linear_dim, memory=config.memory))


for _layer in ("s4d", "bi-s4d", "s6", "bi-s6"):
    for _mixer in MIXERS:
        _register(_layer, _mixer)

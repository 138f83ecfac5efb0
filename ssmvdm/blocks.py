"""What the U-Net is built of, apart from its temporal layers. Videos are (b, c, f, h, w); frames are the batch here.

With memory="fast" a block leaves its derivative to autograd, with "lean" it takes the formulas of `ssmvdm.lean`, which
keep less: the same numbers to rounding.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssmvdm import lean
from ssmvdm.temporal.attention import attend, project_heads


class ChannelNorm(nn.Module):
    """y = (x - mean) / sqrt(var + eps) * gain, statistics over channels, variance biased, no shift: (b, c, ...)."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        gain = self.gain.view(-1, *(1,) * (x.ndim - 2))
        return (x - mean) * torch.rsqrt(variance + self.eps) * gain


class PreNormResidual(nn.Module):
    """x + layer(norm(x)); keyword arguments go to the layer.

    With memory "lean", a layer that says `absorbs_norm = True` gets x itself and the norm as keyword `norm`, so
    that it can keep x in place of norm(x).
    """

    def __init__(self, channels: int, layer: nn.Module, memory: str = "lean"):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.layer = layer
        self.memory = memory

    def forward(self, x: Tensor, **context: Tensor | None) -> Tensor:
        if self.memory == "fast":
            return self.layer(self.norm(x), **context) + x
        if getattr(self.layer, "absorbs_norm", False):
            return self.layer(x, norm=self.norm, **context) + x
        return self.layer(lean.channel_norm(x, self.norm.gain, self.norm.eps), **context) + x


class TimeEmbedding(nn.Module):
    """Sinusoids of the diffusion step, then linear layers with GELU between: t (b,) -> (b, out_dim)."""

    def __init__(self, dim: int, out_dim: int, linears: int = 2):
        super().__init__()
        self.dim = dim
        self.linears = nn.ModuleList(nn.Linear(dim if i == 0 else out_dim, out_dim) for i in range(linears))

    def forward(self, t: Tensor) -> Tensor:
        weight = self.linears[0].weight
        # Steps reach a thousand: in half precision neighbouring ones would be the same number.
        precision = torch.float64 if weight.dtype == torch.float64 else torch.float32
        half = self.dim // 2
        index = torch.arange(half, device=t.device, dtype=precision)
        frequencies = torch.exp(index * (-math.log(10_000) / (half - 1)))
        angles = t.to(precision)[:, None] * frequencies  # (b, half)
        x = torch.cat((angles.sin(), angles.cos()), dim=-1).to(weight.dtype)
        x = self.linears[0](x)
        for linear in self.linears[1:]:
            x = linear(F.gelu(x))
        return x


class ResBlock(nn.Module):
    """Two (1, 3, 3) convolutions with GroupNorm and SiLU; the embedding scales and shifts after the first norm.

    forward(x (b, in_channels, f, h, w), embedding (b, embedding_dim) or None) -> (b, out_channels, f, h, w). With a
    `skip` the input is x and skip side by side, in_channels together. Lean, it keeps its input and what
    its convolutions return.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int | None = None,
        groups: int = 8,
        memory: str = "lean",
    ):
        super().__init__()
        self.embed = None if embedding_dim is None else nn.Linear(embedding_dim, 2 * out_channels)
        self.conv1 = nn.Conv3d(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
        self.norm1 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
        self.norm2 = nn.GroupNorm(groups, out_channels)
        has_new_width = in_channels != out_channels
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if has_new_width else nn.Identity()
        self.memory = memory

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        parts = (x,) if skip is None else (x, skip)
        scale, shift = (None, None) if self.embed is None else self.embed(F.silu(embedding)).chunk(2, dim=1)  # (b, out)
        if self.memory == "lean":
            return self._lean(parts, scale, shift)
        return self._plain(x if skip is None else torch.cat(parts, dim=1), scale, shift)

    def _plain(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        h = self.norm1(self.conv1(x))
        if scale is not None and shift is not None:
            h = h * (scale[..., None, None, None] + 1) + shift[..., None, None, None]
        h = self.norm2(self.conv2(F.silu(h)))
        return F.silu(h) + self.shortcut(x)

    def _lean(self, parts: tuple[Tensor, ...], scale: Tensor | None, shift: Tensor | None) -> Tensor:
        if isinstance(self.shortcut, nn.Identity):
            shortcut = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        else:
            shortcut = lean.convolve_parts(self.shortcut, parts)
        h = lean.norm_silu_conv(lean.convolve_parts(self.conv1, parts), self.norm1, scale, shift, self.conv2)
        return lean.norm_silu(h, self.norm2) + shortcut


class SpatialLinearAttention(nn.Module):
    """softmax_features(q) / sqrt(dim_head) @ (softmax_pixels(k)^T v), every frame for itself: same shape out.

    forward(x, norm=None): of norm(x) where there is a norm, keeping x only.
    """

    absorbs_norm = True

    def __init__(self, channels: int, heads: int, dim_head: int = 32):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, channels, 1)

    def forward(self, x: Tensor, norm: ChannelNorm | None = None) -> Tensor:
        if norm is not None:
            weights = (self.to_qkv.weight.flatten(1), self.to_out.weight.flatten(1), self.to_out.bias)
            return lean.norm_linear_attention(x, norm.gain, norm.eps, *weights, self.heads)
        b, _, _, h, w = x.shape
        qkv = self.to_qkv(rearrange(x, "b c f h w -> (b f) c h w"))
        q, k, v = rearrange(qkv, "n (three heads d) h w -> three n heads d (h w)", three=3, heads=self.heads)
        q = q.softmax(dim=-2) * q.shape[-2] ** -0.5
        context = torch.einsum("nhdp,nhep->nhde", k.softmax(dim=-1), v)  # (n, heads, dim_head, dim_head)
        out = torch.einsum("nhde,nhdp->nhep", context, q)
        out = self.to_out(rearrange(out, "n heads d (h w) -> n (heads d) h w", h=h, w=w))
        return rearrange(out, "(b f) c h w -> b c f h w", b=b)


class SpatialAttention(nn.Module):
    """Full attention over the pixels of each frame: (b, c, f, h, w) -> same shape.

    forward(x, norm=None): of norm(x) where there is a norm, keeping x in its place.
    """

    absorbs_norm = True

    def __init__(self, channels: int, heads: int, dim_head: int = 32, backend: str = "sdpa"):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.to_qkv = nn.Linear(channels, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, channels, bias=False)

    def forward(self, x: Tensor, norm: ChannelNorm | None = None) -> Tensor:
        b, _, _, h, w = x.shape
        q, k, v = project_heads(x, self.to_qkv.weight, self.heads, "pixels", norm)
        out = attend(q, k, v, backend=self.backend)
        out = self.to_out(rearrange(out, "n heads p d -> n p (heads d)"))
        return rearrange(out, "(b f) (h w) c -> b c f h w", b=b, h=h, w=w)


def downsample(channels: int) -> nn.Module:
    """Halve height and width."""
    return nn.Conv3d(channels, channels, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


def upsample(channels: int) -> nn.Module:
    """Double height and width."""
    return nn.ConvTranspose3d(channels, channels, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))

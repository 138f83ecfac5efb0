"""The paper's 3-D U-Net: spatial layers see one frame at a time, temporal layers one pixel at a time.

Source: Oshima et al., "SSM Meets Video Diffusion Models" (arXiv 2403.07711), on the U-Net of Ho et al., "Video
Diffusion Models" (arXiv 2204.03458). Ten temporal layers at four levels: one after the first convolution, one per
level on the way down, one in the middle, one per level on the way up.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvdm.blocks import (
    PreNormResidual,
    ResBlock,
    SpatialAttention,
    SpatialLinearAttention,
    TimeEmbedding,
    downsample,
    upsample,
)
from ssmvdm.config import UNet3DConfig
from ssmvdm.temporal import build_temporal_layer
from ssmvdm.temporal.position import RelativePositionBias
from ssmvdm_kernels.validation import is_cast


class Level(nn.Module):
    """One resolution: two ResBlocks, spatial attention, temporal layer. `resample` leads on to the next level.

    On the way up, `skip` comes beside x.
    """

    def __init__(
        self, in_channels: int, out_channels: int, config: UNet3DConfig, embedding_dim: int, resample: nn.Module
    ):
        super().__init__()
        self.block1 = ResBlock(in_channels, out_channels, embedding_dim, config.norm_groups, config.memory)
        self.block2 = ResBlock(out_channels, out_channels, embedding_dim, config.norm_groups, config.memory)
        self.spatial = _spatial_linear_attention(out_channels, config)
        self.temporal = _temporal(out_channels, config)
        self.resample = resample
        self.is_checkpointed = config.checkpoint_levels

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None, **context: Tensor | None) -> Tensor:
        if self.is_checkpointed and torch.is_grad_enabled():
            options = {"use_reentrant": False, "preserve_rng_state": False}
            return checkpoint(self._forward, x, embedding, skip, **options, **context)
        return self._forward(x, embedding, skip, **context)

    def _forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None, **context: Tensor | None) -> Tensor:
        x = self.block2(self.block1(x, embedding, skip), embedding)
        return self.temporal(self.spatial(x), **context)


class UNet3D(nn.Module):
    """eps(x_t, t): a video (b, channels, f, h, w) and steps t (b,) -> (b, out_channels, f, h, w).

    Any number of frames; height and width are multiples of 2 ** (levels - 1).
    """

    def __init__(self, config: UNet3DConfig):
        super().__init__()
        self.config = config
        init, *widths = config.widths
        embedding_dim = config.time_dim + (config.cond_dim or 0)
        is_attention = config.temporal.layer == "attention"

        self.time_embedding = TimeEmbedding(config.base_channels, config.time_dim, config.time_linears)
        self.null_condition = None if config.cond_dim is None else nn.Parameter(torch.randn(1, config.cond_dim))
        self.position_bias = RelativePositionBias(config.temporal.heads) if is_attention else None

        kernel = config.init_kernel
        self.input_conv = nn.Conv3d(config.channels, init, (1, kernel, kernel), padding=(0, kernel // 2, kernel // 2))
        self.input_temporal = _temporal(init, config)

        pairs = list(zip((init, *widths), widths, strict=False))
        last = len(pairs) - 1
        self.down = nn.ModuleList(
            Level(above, below, config, embedding_dim, downsample(below) if i < last else nn.Identity())
            for i, (above, below) in enumerate(pairs)
        )
        self.middle_block1 = ResBlock(widths[-1], widths[-1], embedding_dim, config.norm_groups, config.memory)
        self.middle_spatial = _spatial_attention(widths[-1], config)
        self.middle_temporal = _temporal(widths[-1], config)
        self.middle_block2 = ResBlock(widths[-1], widths[-1], embedding_dim, config.norm_groups, config.memory)
        self.up = nn.ModuleList(
            Level(2 * below, above, config, embedding_dim, upsample(above) if i < last else nn.Identity())
            for i, (above, below) in enumerate(reversed(pairs))
        )
        self.output_block = ResBlock(2 * init, config.base_channels, groups=config.norm_groups, memory=config.memory)
        self.output_conv = nn.Conv3d(config.base_channels, config.out_channels or config.channels, 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        *,
        cond_drop: Tensor | None = None,
        focus_present: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise in x.

        x: (b, channels, f, h, w); t: (b,) steps, integer or float.
        cond: (b, cond_dim), needed if and only if the network is conditional. cond_drop: (b,) bool, samples that get
            the null embedding in its place (classifier-free training).
        focus_present: (b,) bool, samples whose frames attend only to themselves; temporal layer "attention" only. The
            layer right after the first convolution does not look at it.
        Raises ValueError naming the argument, what was expected and what came.
        """
        self._check(x, t, cond, cond_drop, focus_present)
        embedding = self._embed(t, cond, cond_drop)
        bias = None if self.position_bias is None else self.position_bias(x.shape[2])

        x = self.input_temporal(self.input_conv(x), position_bias=bias)
        context = {"position_bias": bias, "focus_present": focus_present}
        first, skips = x, []
        for level in self.down:
            x = level(x, embedding, **context)
            skips.append(x)
            x = level.resample(x)

        x = self.middle_spatial(self.middle_block1(x, embedding))
        x = self.middle_block2(self.middle_temporal(x, **context), embedding)

        for level in self.up:
            x = level(x, embedding, skips.pop(), **context)
            x = level.resample(x)
        return self.output_conv(self.output_block(x, skip=first))

    def guided(self, x: Tensor, t: Tensor, cond: Tensor, scale: float) -> Tensor:
        """eps_null + scale (eps_cond - eps_null): classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

        scale 1 is the conditional prediction itself and costs one evaluation instead of two.
        """
        conditional = self(x, t, cond)
        if scale == 1:
            return conditional
        everything = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        unconditional = self(x, t, cond, cond_drop=everything)
        return unconditional + (conditional - unconditional) * scale

    def _embed(self, t: Tensor, cond: Tensor | None, cond_drop: Tensor | None) -> Tensor:
        """Time embedding and condition side by side: (b, time_dim + cond_dim)."""
        embedding = self.time_embedding(t)
        if cond is None:
            return embedding
        cond = cond.to(embedding.dtype)
        if cond_drop is not None:
            cond = torch.where(cond_drop[:, None], self.null_condition, cond)
        return torch.cat((embedding, cond), dim=-1)

    def _check(self, x, t, cond, cond_drop, focus_present) -> None:
        config, weight = self.config, self.input_conv.weight
        multiple = config.frame_multiple
        given = {"x": x, "t": t, "cond": cond, "cond_drop": cond_drop, "focus_present": focus_present}
        for name, value in given.items():
            if value is None and name not in ("x", "t"):
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
            if value.device != x.device:
                raise ValueError(f"{name} must be on {x.device}, as x is, got {value.device}")
        if x.ndim != 5 or x.shape[1] != config.channels or x.numel() == 0:
            raise ValueError(f"x must be (b, {config.channels}, f, h, w), no size 0, got {tuple(x.shape)}")
        if x.dtype != weight.dtype and not (is_cast(x) and is_cast(weight)):
            raise ValueError(f"x must be {weight.dtype}, as the network is, got {x.dtype}")
        if x.is_meta and not weight.is_meta:  # other devices may differ: weights that are offloaded follow x
            raise ValueError(f"x must be on {weight.device}, as the network is, got {x.device}")
        b = x.shape[0]
        if x.shape[3] % multiple or x.shape[4] % multiple:
            raise ValueError(f"height and width of x must be multiples of {multiple}, got {tuple(x.shape[3:])}")
        if t.shape != (b,):
            raise ValueError(f"t must be ({b},), one step per sample of x, got {tuple(t.shape)}")
        if t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"t must be integer or float, got {t.dtype}")
        if config.cond_dim is None and (cond is not None or cond_drop is not None):
            raise ValueError("cond and cond_drop need a network with cond_dim, this one has none")
        if config.cond_dim is not None and (cond is None or cond.shape != (b, config.cond_dim)):
            came = "none" if cond is None else tuple(cond.shape)
            raise ValueError(f"cond must be ({b}, {config.cond_dim}), got {came}")
        if focus_present is not None and config.temporal.layer != "attention":
            raise ValueError(
                f"focus_present needs temporal layer 'attention', this network has {config.temporal.layer!r}"
            )
        for name, mask in (("cond_drop", cond_drop), ("focus_present", focus_present)):
            if mask is not None and (mask.shape != (b,) or mask.dtype != torch.bool):
                raise ValueError(f"{name} must be ({b},) bool, got {tuple(mask.shape)} {mask.dtype}")


def _temporal(channels: int, config: UNet3DConfig) -> nn.Module:
    layer = build_temporal_layer(channels, config.temporal)
    return layer if config.temporal.layer == "none" else PreNormResidual(channels, layer, config.memory)


def _spatial_linear_attention(channels: int, config: UNet3DConfig) -> nn.Module:
    if not config.spatial_linear_attention:
        return nn.Identity()
    heads = config.spatial_heads or config.temporal.heads
    layer = SpatialLinearAttention(channels, heads, config.spatial_dim_head)
    return PreNormResidual(channels, layer, config.memory)


def _spatial_attention(channels: int, config: UNet3DConfig) -> nn.Module:
    heads, backend = config.spatial_heads or config.temporal.heads, config.temporal.attention_backend
    layer = SpatialAttention(channels, heads, config.spatial_dim_head, backend)
    return PreNormResidual(channels, layer, config.memory)

"""Where temporal attention is in models of other packages. Nothing is imported from them: classes are known by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

# diffusers: the modules that own temporal transformer blocks, and the attribute that lists those blocks.
_BLOCK_LISTS = {
    "TransformerTemporalModel": "transformer_blocks",  # UNet3DConditionModel, I2VGenXLUNet
    "AnimateDiffTransformer3D": "transformer_blocks",  # UNetMotionModel, MotionAdapter
    "TransformerSpatioTemporalModel": "temporal_transformer_blocks",  # UNetSpatioTemporalConditionModel
    "LatteTransformer3DModel": "temporal_transformer_blocks",
}
_IMAGE_ENCODER = "I2VGenXLTransformerTemporalEncoder"  # is one such block itself
SUPPORTED = (
    "UNet3DConditionModel, I2VGenXLUNet, UNetMotionModel, MotionAdapter, UNetSpatioTemporalConditionModel and "
    "LatteTransformer3DModel of diffusers, and Unet3D of video-diffusion-pytorch"
)

# diffusers: transformers over frames and pixels together have names that end so, and Latte's alone is none of them.
_FULL_ATTENTION = "Transformer3DModel"

# video-diffusion-pytorch: the arrangement in which its attention gets frames as the sequence.
_FRAMES_LAST_BUT_ONE = "b (h w) f c"


class FullAttentionError(ValueError):
    """The model has no temporal layers to swap: its attention is over space and time at once."""


@dataclass(frozen=True)
class Site:
    """One temporal attention layer, `parent.attribute`, found at the dotted path `name`."""

    name: str
    parent: nn.Module
    attribute: str
    channels: int
    owner: str  # class of the module that arranges the frames for it
    why_kept: str | None  # None: it can be swapped

    @property
    def attention(self) -> nn.Module:
        return getattr(self.parent, self.attribute)


@dataclass(frozen=True)
class PositionLimit:
    """Position embeddings that hold for at most `frames` frames, or, if `is_exact`, for exactly so many."""

    name: str
    frames: int
    is_exact: bool
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {'exactly' if self.is_exact else 'at most'} {self.frames} frames; {self.remedy}"


def check_has_no_full_attention(caller: str, model: nn.Module) -> None:
    """Raise FullAttentionError if the model, or a part of it, attends over all frames and pixels together."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if _is_from(module, "diffusers") and kind.endswith(_FULL_ATTENTION) and kind not in _BLOCK_LISTS:
            where = f" (at {name!r})" if name else ""
            raise FullAttentionError(
                f"{caller}: {kind}{where} has no temporal layers. Its attention runs over all frames and pixels at "
                "once, as one sequence (batch, frames * height * width, channels), so no layer mixes frames alone and "
                f"a scan over time has none to take the place of. Nothing was changed. Models with temporal layers: "
                f"{SUPPORTED}."
            )


def find_sites(model: nn.Module) -> Iterator[Site]:
    """Every temporal attention layer, in the order of `named_modules`, those that have to stay included."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        prefix = f"{path}." if path else ""
        if _is_from(module, "diffusers") and kind in _BLOCK_LISTS:
            attribute = _BLOCK_LISTS[kind]
            for index, block in enumerate(getattr(module, attribute)):
                yield from _block_sites(f"{prefix}{attribute}.{index}", block, kind)
        elif _is_from(module, "diffusers") and kind == _IMAGE_ENCODER:
            yield from _block_sites(path, module, kind)
        elif kind == "EinopsToAndFrom" and module.to_einops == _FRAMES_LAST_BUT_ONE and hasattr(module.fn, "to_qkv"):
            yield Site(f"{prefix}fn", module, "fn", module.fn.to_qkv.in_features, kind, None)


def find_position_limits(model: nn.Module, is_attention_kept: bool) -> Iterator[PositionLimit]:
    """The position embeddings of temporal layers that end at, or are of, a certain number of frames."""
    longer = "the attention beside the scan needs a longer table for longer videos"
    if not is_attention_kept:
        longer = "the scan needs none: for longer videos set it to None"
    for path, module in model.named_modules():
        kind = type(module).__name__
        prefix = f"{path}." if path else ""
        if not _is_from(module, "diffusers") or kind not in _BLOCK_LISTS:
            continue
        for index, block in enumerate(getattr(module, _BLOCK_LISTS[kind])):
            table = getattr(block, "pos_embed", None)
            if table is not None:
                name = f"{prefix}{_BLOCK_LISTS[kind]}.{index}.pos_embed"
                yield PositionLimit(name, table.pe.shape[1], False, longer)
        if kind == "LatteTransformer3DModel":
            remedy = "for another length put a table (1, frames, channels) in its place"
            yield PositionLimit(f"{prefix}temp_pos_embed", module.temp_pos_embed.shape[1], True, remedy)


def find_unread_tables(model: nn.Module) -> Iterator[str]:
    """Parameters that only temporal attention reads, although the model owns them elsewhere."""
    for path, module in model.named_modules():
        if type(module).__name__ == "RelativePositionBias" and path.endswith("time_rel_pos_bias"):
            yield from (f"{path}.{name}" for name, _ in module.named_parameters())


def _block_sites(path: str, block: nn.Module, owner: str) -> Iterator[Site]:
    for attribute in ("attn1", "attn2"):
        attention = getattr(block, attribute, None)
        if attention is None:
            continue
        why_kept = None
        if getattr(attention, "is_cross_attention", False):
            why_kept = "cross-attention: it reads the condition, not the other frames"
        yield Site(f"{path}.{attribute}", block, attribute, attention.query_dim, owner, why_kept)


def _is_from(module: nn.Module, package: str) -> bool:
    """Whether the module's class, or one that it derives from, is defined in that package."""
    return any(base.__module__.partition(".")[0] == package for base in type(module).__mro__)

"""`swap_temporal_layers`: the bidirectional scan in place of, or beside, temporal attention of an existing model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from ssmvdm.integrations import sites
from ssmvdm.integrations.layers import ParallelScan, TemporalScan
from ssmvdm_kernels import BidirectionalMamba
from ssmvdm_kernels.validation import check_choice

MODES = ("replace", "parallel")


@dataclass(frozen=True)
class SwappedLayer:
    """A layer that now scans: its path in the model, its width, the class that owns it, its parameters."""

    name: str
    channels: int
    owner: str
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class KeptLayer:
    """A temporal attention layer that stays as it is."""

    name: str
    reason: str


@dataclass(frozen=True)
class SwapReport:
    """What `swap_temporal_layers` did. `print(report)` shows all of it.

    swapped, kept: every temporal attention layer is in one of the two.
    position_limits: position embeddings that the model still adds and that end at a trained length.
    unread_parameters: parameters that only the replaced layers read. They get no gradient any more.
    """

    model: str
    mode: str
    swapped: tuple[SwappedLayer, ...]
    kept: tuple[KeptLayer, ...]
    position_limits: tuple[sites.PositionLimit, ...]
    unread_parameters: tuple[str, ...]

    def __str__(self) -> str:
        before = sum(layer.parameters_before for layer in self.swapped)
        after = sum(layer.parameters_after for layer in self.swapped)
        done = "replaced by a scan" if self.mode == "replace" else "joined by a scan"
        total = len(self.swapped) + len(self.kept)
        lines = [f"{self.model}: {len(self.swapped)} of {total} temporal attention layers {done}"]
        owners = Counter(layer.owner for layer in self.swapped)
        lines += [f"  {count} in {owner}" for owner, count in owners.items()]
        lines.append(f"  their parameters: {before:,} before, {after:,} now")
        lines += [f"  {layer.name} ({layer.channels} channels)" for layer in self.swapped]
        for title, entries in (
            ("kept", [f"{layer.name}: {layer.reason}" for layer in self.kept]),
            ("position embeddings of a trained length", [str(limit) for limit in self.position_limits]),
            ("parameters that no layer reads any more", list(self.unread_parameters)),
        ):
            if entries:
                lines += [title, *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


def swap_temporal_layers(model: nn.Module, mode: str = "replace", **mixer_options) -> SwapReport:
    """Put the bidirectional scan into the temporal attention layers of a video model, in place.

        mode="replace"    y = scan(x)                       attention and its weights are gone
        mode="parallel"   y = attention(x) + gate * scan(x)   gate = 0 at first: the same numbers, bit for bit

    Knows UNet3DConditionModel, I2VGenXLUNet, UNetMotionModel, MotionAdapter, UNetSpatioTemporalConditionModel and
    LatteTransformer3DModel of diffusers, and Unet3D of video-diffusion-pytorch. Self-attention over frames is swapped;
    temporal cross-attention stays. The scan reads the tensors that the attention was given, (sequences, frames,
    channels) or (batch, pixels, frames, channels), without copying them, for any number of sequences.

    Load pretrained weights before swapping, and swap before loading a checkpoint of the swapped model.

    Args:
        model: changed in place. New modules get the device, dtype and training mode of the layer they replace.
        mode: "replace" or "parallel".
        mixer_options: of `BidirectionalMamba`: states, conv_width, expand, dt_rank, bias, memory.

    Returns:
        a `SwapReport`: what was swapped, what was kept and why, which position embeddings limit the length.

    Raises:
        FullAttentionError: the model attends over space and time together (Wan, CogVideoX, HunyuanVideo, LTX, Mochi).
        ValueError: an unknown mode, a model without temporal layers, or one whose layers are swapped already.
        TypeError: `model` is no module, or an option that `BidirectionalMamba` does not have.

    After an error the model is as it was.
    """
    caller = "swap_temporal_layers"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be a torch.nn.Module, but is of type {type(model).__name__}.")
    check_choice(caller, "mode", mode, MODES)
    if any(isinstance(module, TemporalScan) for module in model.modules()):
        raise ValueError(f"{caller}: the temporal layers of this {type(model).__name__} have been swapped already.")
    sites.check_has_no_full_attention(caller, model)
    found = list(sites.find_sites(model))
    if not found:
        raise ValueError(
            f"{caller}: found no temporal attention in {type(model).__name__}. Models it knows: {sites.SUPPORTED}."
        )
    chosen = [site for site in found if site.why_kept is None]
    fresh = [_new_layer(site, mode, mixer_options) for site in chosen]
    swapped = tuple(_describe(site, layer) for site, layer in zip(chosen, fresh, strict=True))
    for site, layer in zip(chosen, fresh, strict=True):
        setattr(site.parent, site.attribute, layer)
    return SwapReport(
        type(model).__name__,
        mode,
        swapped,
        tuple(KeptLayer(site.name, site.why_kept) for site in found if site.why_kept is not None),
        tuple(sites.find_position_limits(model, is_attention_kept=mode == "parallel")),
        tuple(sites.find_unread_tables(model)) if mode == "replace" else (),
    )


def _new_layer(site: sites.Site, mode: str, mixer_options: dict) -> nn.Module:
    attention = site.attention
    like = next(attention.parameters())
    with like.device:
        mixer = BidirectionalMamba(site.channels, **mixer_options)
    scan = TemporalScan(mixer.to(like.dtype))
    layer = scan if mode == "replace" else ParallelScan(attention, scan)
    return layer.train(attention.training)


def _describe(site: sites.Site, layer: nn.Module) -> SwappedLayer:
    return SwappedLayer(site.name, site.channels, site.owner, _size(site.attention), _size(layer))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

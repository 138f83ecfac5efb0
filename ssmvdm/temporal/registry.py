"""Temporal layers by name.

A family's file registers a builder per (layer, mixer); layers without mixers register under mixer None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from ssmvdm.config import TemporalConfig

ALIASES = {"attn": "attention", "l-attn": "linear-attention"}

Builder = Callable[[int, "TemporalConfig"], nn.Module]
_builders: dict[tuple[str, str | None], Builder] = {}


def register(layer: str, mixer: str | None = None) -> Callable[[Builder], Builder]:
    """Decorator for a builder (channels, config) -> module (b, c, f, h, w) -> (b, c, f, h, w)."""

    def add(builder: Builder) -> Builder:
        _builders[layer, mixer] = builder
        return builder

    return add


def available_temporal_layers() -> tuple[str, ...]:
    """Every layer that exists, a layer with mixers once per mixer, as "layer" or "layer/mixer"."""
    return tuple(layer if mixer is None else f"{layer}/{mixer}" for layer, mixer in sorted(_builders, key=str))


def canonical_name(layer: str) -> str:
    """The layer's own name, aliases resolved; any other string comes back as it is."""
    return ALIASES.get(layer, layer)


def check_exists(layer: str, mixer: str) -> None:
    """Raise ValueError, listing what exists, unless the layer (with that mixer, where it has mixers) does."""
    _find(layer, mixer)


def build_temporal_layer(channels: int, config: TemporalConfig) -> nn.Module:
    """The layer of `config` for videos of `channels` channels: a module (b, c, f, h, w) -> (b, c, f, h, w).

    Its forward also takes position_bias (heads, f, f) and focus_present (b,), which only attention looks at.
    """
    return _find(config.layer, config.mixer)(channels, config)


def _find(layer: str, mixer: str) -> Builder:
    for key in ((layer, None), (layer, mixer)):
        if key in _builders:
            return _builders[key]
    exists = ", ".join(available_temporal_layers())
    asked = f"{layer!r} with mixer {mixer!r}" if any(name == layer for name, _ in _builders) else f"{layer!r}"
    raise ValueError(f"there is no temporal layer {asked}; there are: {exists}")

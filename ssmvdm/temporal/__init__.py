"""Temporal layers: one file per family, found by name through the registry."""

from ssmvdm.temporal import attention, linear_attention, mixers, none  # noqa: F401  (each registers its layers)
from ssmvdm.temporal.registry import available_temporal_layers, build_temporal_layer, canonical_name

__all__ = ["available_temporal_layers", "build_temporal_layer", "canonical_name"]

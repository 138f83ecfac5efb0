"""The scan in video models of other packages: `swap_temporal_layers`."""

from ssmvdm.integrations.layers import ParallelScan, TemporalScan
from ssmvdm.integrations.sites import FullAttentionError, PositionLimit
from ssmvdm.integrations.swap import KeptLayer, SwappedLayer, SwapReport, swap_temporal_layers

__all__ = [
    "FullAttentionError",
    "KeptLayer",
    "ParallelScan",
    "PositionLimit",
    "SwapReport",
    "SwappedLayer",
    "TemporalScan",
    "swap_temporal_layers",
]

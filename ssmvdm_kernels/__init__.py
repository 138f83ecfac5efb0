"""Selective scans for video: both time directions at once, on the tensor as it lies in memory.

The public functions are `selective_scan` and `s4d_scan`, both also with `bidirectional_` before their names,
`causal_conv1d` and `bidirectional_conv1d`; the module is `BidirectionalMamba`. `available_backends()` lists what runs
on this machine and `explain(u)` says why. Importing this package builds nothing, downloads nothing and does not
initialise a GPU.
"""

from .backends import available_backends, explain
from .conv import bidirectional_conv1d, causal_conv1d
from .modules import BidirectionalMamba
from .s4d import bidirectional_s4d_scan, s4d_scan
from .scan import bidirectional_selective_scan, selective_scan

__version__ = "0.1.0"

__all__ = [
    "BidirectionalMamba",
    "available_backends",
    "bidirectional_conv1d",
    "bidirectional_s4d_scan",
    "bidirectional_selective_scan",
    "causal_conv1d",
    "explain",
    "s4d_scan",
    "selective_scan",
]

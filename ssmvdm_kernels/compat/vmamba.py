"""The selective scan of VMamba (Liu et al., arXiv 2401.10166) with its signature: argument seven is delta_bias."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scan import selective_scan
from .inner import without_autocast

_THEIR_LIBRARIES = (None, "oflex", "core", "mamba")  # CUDA libraries there; here whatever runs best
_IGNORE_OFLEX = ("core", "mamba")


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor:
    """`ssmvdm_kernels.selective_scan` as VMamba calls it: no z, softplus by default. Shapes and errors are as there.

    Args:
        u, delta: (batch, groups * channels, length). A: (groups * channels, states). D, delta_bias: (groups *
            channels,). B, C: (batch, groups, states, length).
        oflex: return float32 for bfloat16 and float16 sequences, not rounded in between.
        backend: None; "oflex", "core" or "mamba", which are libraries of VMamba and mean None here, but for "core" and
            "mamba" returning u's dtype whatever `oflex` says; "torch", our "reference"; or one of our backends.

    Autocast is not applied: tensors keep the dtypes they come in.
    """
    chosen = "auto" if backend in _THEIR_LIBRARIES else "reference" if backend == "torch" else backend
    if oflex and backend not in _IGNORE_OFLEX and isinstance(u, Tensor) and u.dtype in (torch.bfloat16, torch.float16):
        u, delta, B, C = (t.float() if isinstance(t, Tensor) else t for t in (u, delta, B, C))
    with without_autocast(u):
        return selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus, backend=chosen)

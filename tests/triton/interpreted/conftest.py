"""Tests for where Triton interprets its kernels: `test_interpreter.py` runs them in a process of their own."""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

if not collect_ignore_glob:
    import triton.language as tl
    from triton.runtime import interpreter

    from ssmvdm_kernels.triton_kernels import arithmetic
    from tests.kernels import rounding

    # The interpreter prepares Triton's language anew at each call of a function, which takes most of its time.
    for function in (arithmetic.sigmoid, tl.standard.sum):
        interpreter._patch_lang(function.fn)
    interpreter.InterpretedFunction.__call__ = lambda self, *given, **named: self.rewrite()(*given, **named)

    # It cuts bfloat16 off where a GPU rounds: one unit instead of half.
    rounding.UNIT[torch.bfloat16] *= 2


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Memory from torch.empty is NaN, so that what a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = False


@pytest.fixture(params=["channels", "lanes"])
def gpu_tiles(request, monkeypatch):
    """The tiles of GPUs, narrower: one lane, or several with one channel or two."""
    from ssmvdm_kernels.triton_kernels import launch

    tiling = {"channels": launch.Tiling(32, 1, programs=3), "lanes": launch.Tiling(2, 4, programs=3)}[request.param]
    monkeypatch.setattr(launch.Tilings, "of", lambda self, u: tiling)
    return request.param


@pytest.fixture
def many_channels(gpu_tiles) -> int:
    """More than such a tile has."""
    return {"channels": 35, "lanes": 5}[gpu_tiles]

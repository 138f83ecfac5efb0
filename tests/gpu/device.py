"""Where tests of this folder run, and what they skip for."""

from __future__ import annotations

import pytest
import torch

BACKENDS = ("cuda", "triton")
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]
each_backend = pytest.mark.parametrize("name", BACKENDS)


def require_memory(nbytes: int) -> None:
    """Skip where the device has not so much memory free."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < nbytes:
        pytest.skip(f"{nbytes / 2**30:.0f} GiB of device memory are needed, {free / 2**30:.0f} are free")

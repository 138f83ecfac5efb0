"""What the formulas share: dtypes, and a video in pieces that stay in a core's cache."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ssmvdm_kernels.validation import autocast_dtype

# Elements that a formula works on at a time. On the CPU 4 MiB of float32 stay in cache; other devices want work enough.
CPU_ELEMENTS, OTHER_ELEMENTS = 2**20, 2**25
MIN_TOKENS = 1024  # below that a product spends its time reading its weight


def pieces(x: Tensor, rows: int) -> Iterator[tuple[int, slice]]:
    """(sample, frames) of x (b, c, f, h, w) one after the other, for work that has `rows` elements per pixel."""
    b, _, f, h, w = x.shape
    elements = CPU_ELEMENTS if x.device.type == "cpu" else OTHER_ELEMENTS
    frames = max(1, max(MIN_TOKENS, elements // rows) // max(1, h * w))
    # A compiler fuses by itself and would unroll the loop. Tensors that stand for others have no data to keep in cache.
    if torch.compiler.is_compiling() or x.is_meta or type(x) not in (Tensor, nn.Parameter):
        frames = max(1, f)
    for sample in range(b):
        for start in range(0, f, frames):
            yield sample, slice(start, min(start + frames, f))


def columns(x: Tensor, sample: int, frames: slice) -> Tensor:
    """The pixels of a piece as the columns of a matrix (c, frames * h * w), a view where the layout allows it."""
    return x[sample, :, frames].flatten(1)


def put(x: Tensor, sample: int, frames: slice, values: Tensor) -> None:
    """The inverse of `columns`, into x."""
    target = x[sample, :, frames]
    target.copy_(values.view(target.shape))


def wide(x: Tensor) -> Tensor:
    """x in the precision of statistics and sums: float32, or float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def working_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of products: that of autocast, or else of the weight."""
    return autocast_dtype(x) or weight.dtype


def no_autocast(x: Tensor) -> AbstractContextManager:
    """A formula chooses its dtypes itself, in backward too, wherever that is called."""
    device = x.device.type
    is_on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, summed in total's precision from piece to piece."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right

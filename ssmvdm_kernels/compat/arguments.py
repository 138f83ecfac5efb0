"""The tensors that the fused functions of mamba-ssm and Vim are given, and their check."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import validation
from ..validation import SEQUENCE_DTYPES


class LayerTensors(NamedTuple):
    """All of a layer between its first projection and its last, under the names that the fused functions have."""

    xz: Tensor  # (batch, 2 channels, length)
    conv1d_weight: Tensor  # (channels, 1, width) | (channels, width)
    conv1d_bias: Tensor | None  # (channels,)
    x_proj_weight: Tensor  # (rank + 2 states, channels), without the rows of a B or C that is given
    delta_proj_weight: Tensor  # (channels, rank)
    A: Tensor  # (channels, states)
    B: Tensor | None = None  # one of the forms that selective_scan takes
    C: Tensor | None = None
    D: Tensor | None = None  # (channels,)
    delta_bias: Tensor | None = None  # (channels,)
    B_proj_bias: Tensor | None = None  # (states,)
    C_proj_bias: Tensor | None = None
    b_rms_weight: Tensor | None = None  # (states,)
    c_rms_weight: Tensor | None = None
    dt_rms_weight: Tensor | None = None  # (channels,)
    A_b: Tensor | None = None  # like A: Vim's reverse direction
    out_proj_weight: Tensor | None = None  # (out, channels)
    out_proj_bias: Tensor | None = None  # (out,)


_REQUIRED = ("xz", "conv1d_weight", "x_proj_weight", "delta_proj_weight", "A")


def check_layer(caller: str, t: LayerTensors, *required: str) -> None:
    """Check all tensors of a fused function, of which `required` may not be None either, before it computes anything.

    Under autocast, which brings each to the dtype that it takes there, parameters may have any floating dtype.
    """
    for name, tensor in zip(t._fields, t, strict=True):
        if tensor is not None or name in _REQUIRED or name in required:
            validation.check_tensor(caller, name, tensor)
    xz, low = t.xz, validation.autocast_dtype(t.xz)
    if low is None:
        validation.check_dtype(caller, "xz", xz, SEQUENCE_DTYPES)
    else:
        validation.check_dtype(caller, "xz", xz, (torch.float32, low), " under autocast")
    if xz.dim() != 3 or xz.shape[1] % 2 != 0:
        raise ValueError(
            f"{caller}: xz must have the shape (batch, 2 channels, length), x and z one after the other, "
            f"but has {tuple(xz.shape)}."
        )

    channels = xz.shape[1] // 2
    rank, states = _size(t.delta_proj_weight, -1), _size(t.A, -1)
    width, out = _size(t.conv1d_weight, -1), _size(t.out_proj_weight, 0)
    taps = (channels, width) if t.conv1d_weight.dim() == 2 else (channels, 1, width)
    projected = (t.B is None) + (t.C is None)
    rows = " + ".join(("rank of delta_proj_weight", *["states of A"] * projected))
    of_channels = ((channels,), "one value per channel of x")
    of_states = ((states,), "one value per state of A")
    any_float = SEQUENCE_DTYPES
    sequence = (xz.dtype,) if low is None else (torch.float32, low)
    weight = (xz.dtype,) if low is None else any_float
    parameter = (torch.promote_types(xz.dtype, torch.float32),) if low is None else any_float
    # A tensor that sets a size comes before those that have to match it.
    table = (
        ("conv1d_weight", weight + parameter, taps, "the shape (channels of x, [1,] width)"),
        ("conv1d_bias", weight + parameter, *of_channels),
        ("delta_proj_weight", weight, (channels, rank), "the shape (channels of x, rank)"),
        ("A", parameter, (channels, states), "the shape (channels of x, states)"),
        ("x_proj_weight", weight, (rank + projected * states, channels), f"the shape ({rows}, channels of x)"),
        ("A_b", parameter, (channels, states), "the shape of A"),
        ("D", parameter, *of_channels),
        ("delta_bias", parameter, *of_channels),
        ("B_proj_bias", any_float, *of_states),
        ("C_proj_bias", any_float, *of_states),
        ("b_rms_weight", any_float, *of_states),
        ("c_rms_weight", any_float, *of_states),
        ("dt_rms_weight", any_float, *of_channels),
        ("out_proj_weight", weight, (out, channels), "the shape (out, channels of x)"),
        ("out_proj_bias", any_float, (out,), "one value per row of out_proj_weight"),
    )
    beside = f" with {validation.dtype_name(xz.dtype)} in xz"
    for name, dtypes, shape, meaning in table:
        tensor = getattr(t, name)
        if tensor is not None:
            validation.check_dtype(caller, name, tensor, dtypes, beside)
            validation.check_device(caller, name, tensor, "xz", xz)
            validation.check_shape(caller, name, tensor, shape, meaning)
    if width == 0:
        raise ValueError(f"{caller}: conv1d_weight must have a width of at least 1, but has {taps}.")
    for name, tensor in (("B", t.B), ("C", t.C)):
        if tensor is not None:
            validation.check_dtype(caller, name, tensor, parameter if tensor.dim() == 2 else sequence, beside)
            validation.check_device(caller, name, tensor, "xz", xz)
            validation.check_modulation(caller, name, tensor, xz[:, :channels], states)


def _size(tensor: Tensor | None, axis: int) -> int:
    """A size that the tensor itself sets; anything where its shape, which is checked afterwards, has no such axis."""
    return tensor.shape[axis] if tensor is not None and tensor.dim() > 0 else 0

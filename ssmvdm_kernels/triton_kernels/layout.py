"""How the kernels see tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor


def encoded(number: int) -> int:
    """An integer as kernels receive it: odd and never 1.

    Triton compiles a kernel again for every pattern of integers that are 1 or multiples of 16; with the strides of a
    dozen tensors that would be one kernel per shape.
    """
    return 2 * number + 3


class Sizes(NamedTuple):
    """The numbers of a call, encoded."""

    length: int
    channels: int  # of one group
    lanes: int
    states: int
    first_state: int  # of this launch
    groups: int
    channel_blocks: int  # of one group
    lane_blocks: int  # of one batch entry
    sequence_blocks: int  # batch times lane_blocks
    channel_slices: int  # of one group; a program of the backward pass has a slice of channels and one of sequences
    sequence_slices: int

    @property
    def programs(self) -> int:
        """Of the backward pass; before encoding."""
        return self.channel_slices * self.groups * self.sequence_slices

    @property
    def tiles(self) -> int:
        """Programs of the forward pass; before encoding."""
        return self.sequence_blocks * self.groups * self.channel_blocks


class View(NamedTuple):
    """A tensor as kernels see it: strides, encoded, count elements. The stride of an axis it does not have is 0."""

    data: Tensor
    batch: int
    channel: int
    time: int
    lane: int
    FAR: tl.constexpr  # offsets within a batch entry need 64 bits
    state: int = encoded(0)


class Modulation(NamedTuple):
    """B or C."""

    data: Tensor
    batch: int
    group: int
    channel: int
    state: int
    time: int
    lane: int
    CONSTANT: tl.constexpr  # in time: (channels, states)
    UNIT: tl.constexpr  # states lie side by side
    FAR: tl.constexpr  # offsets within a group need 64 bits


def check(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """What the public functions have checked, once more for those who call an operator directly."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have the shape {tuple(shape)}, but has {tuple(tensor.shape)}.")
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, but is {tensor.dtype}.")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, but is on {tensor.device}.")


def is_far(tensor: Tensor, leading: int) -> tl.constexpr:
    """Whether offsets along all axes but the first `leading` need more than 32 bits."""
    axes = zip(tensor.shape[leading:], tensor.stride()[leading:], strict=True)
    return tl.constexpr(sum(max(0, size - 1) * stride for size, stride in axes) >= 2**31)


def lane_stride(tensor: Tensor, leading: int = 3) -> int | None:
    """The stride of all axes after the first `leading` taken as one, or None if they do not merge."""
    if 0 in tensor.shape:
        return 0
    merged, size_below = None, 1
    for size, stride in zip(reversed(tensor.shape[leading:]), reversed(tensor.stride()[leading:]), strict=True):
        if size == 1:
            continue
        if merged is not None and stride != merged * size_below:
            return None
        merged = stride if merged is None else merged
        size_below *= size
    return merged or 0


def with_one_lane_stride(tensor: Tensor, leading: int = 3) -> Tensor:
    """The tensor, copied if its lanes have no common stride."""
    return tensor if lane_stride(tensor, leading) is not None else tensor.contiguous()


def sequence_view(tensor: Tensor | None) -> View | None:
    """(batch, channels, length, *lanes)."""
    if tensor is None:
        return None
    tensor = with_one_lane_stride(tensor)
    return View(tensor, *map(encoded, (*tensor.stride()[:3], lane_stride(tensor))), FAR=is_far(tensor, 1))


def state_view(tensor: Tensor | None) -> View | None:
    """(batch, channels, states, *lanes)."""
    view = sequence_view(tensor)
    return None if view is None else view._replace(time=encoded(0), state=view.time)


def modulation_view(tensor: Tensor, dims: int, groups: int) -> Modulation:
    """B or C beside sequences of `dims` axes: (batch, [groups,] states, length, *lanes) | (channels, states).

    Where B and C come in unlike numbers of groups, `groups` is what both divide, and a copy is made.
    """
    if tensor.dim() == 2:
        tensor, leading = tensor.contiguous(), 2
        strides = (0, 0, tensor.shape[1], 1, 0, 0)
    else:
        leading = tensor.dim() - dims + 3
        if leading == 4 and tensor.shape[1] != groups:
            tensor = tensor.repeat_interleave(groups // tensor.shape[1], 1)
        tensor = with_one_lane_stride(tensor, leading)
        batch, *group, state, time = tensor.stride()[:leading]
        strides = (batch, *(group or [0]), 0, state, time, lane_stride(tensor, leading))
    far = is_far(tensor, leading - 2)
    is_constant, is_unit = tl.constexpr(tensor.dim() == 2), tl.constexpr(strides[3] == 1)
    return Modulation(tensor, *map(encoded, strides), CONSTANT=is_constant, UNIT=is_unit, FAR=far)


class Sequence:
    """A sequence tensor that a kernel writes, perhaps in parts that have to be added up.

    Parts wait in float32: in the tensor itself where it has that type. Lanes without a common stride are written to a
    dense copy.
    """

    def __init__(self, tensor: Tensor, is_sum: bool):
        self.tensor = tensor
        has_stride = lane_stride(tensor) is not None
        self._target = tensor if has_stride else tensor.new_empty(tensor.shape)
        wants_memory = is_sum and tensor.dtype != torch.float32
        self._sum = torch.empty_like(self._target, dtype=torch.float32) if wants_memory else self._target

    def views(self, direction: int, halves: bool) -> tuple[View, View]:
        """(the tensor, where parts of it wait), or of one half of the channels."""
        both = (self._target, self._sum)
        if halves:
            channels = self._target.shape[1] // 2
            both = tuple(t.narrow(1, direction * channels, channels) for t in both)
        return sequence_view(both[0]), sequence_view(both[1])

    def finish(self) -> None:
        """Bring what was written to where it belongs."""
        if self._target is not self.tensor:
            self.tensor.copy_(self._target)

"""How the kernels see tensors."""

from __future__ import annotations

import math
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


class Fours(NamedTuple):
    """B, C or their gradients in float32, four states side by side: a thread moves them at once. Strides, encoded,
    count fours; states are filled up to whole fours and launches."""

    data: Tensor
    batch: int
    group: int
    time: int
    four: int
    lane: int
    CONSTANT: tl.constexpr
    UNIT: tl.constexpr  # fours lie side by side


def check(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """What the public functions have checked, once more for those who call an operator directly."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have the shape {tuple(shape)}, but has {tuple(tensor.shape)}.")
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, but is {tensor.dtype}.")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, but is on {tensor.device}.")


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
    return View(tensor, *map(encoded, tensor.stride()[:3]), lane=encoded(lane_stride(tensor)))


def state_view(tensor: Tensor | None) -> View | None:
    """(batch, channels, states, *lanes)."""
    view = sequence_view(tensor)
    return None if view is None else view._replace(time=encoded(0), state=view.time)


def modulation_view(tensor: Tensor, dims: int, groups: int) -> Modulation:
    """B or C beside sequences of `dims` axes: (batch, [groups,] states, length, *lanes) | (channels, states).

    Where B and C come in unlike numbers of groups, `groups` is what both divide, and a copy is made.
    """
    if tensor.dim() == 2:
        tensor = tensor.contiguous()
        strides = (0, 0, tensor.shape[1], 1, 0, 0)
    else:
        leading = tensor.dim() - dims + 3
        if leading == 4 and tensor.shape[1] != groups:
            tensor = tensor.repeat_interleave(groups // tensor.shape[1], 1)
        tensor = with_one_lane_stride(tensor, leading)
        batch, *group, state, time = tensor.stride()[:leading]
        strides = (batch, *(group or [0]), 0, state, time, lane_stride(tensor, leading))
    is_constant, is_unit = tl.constexpr(tensor.dim() == 2), tl.constexpr(strides[3] == 1)
    return Modulation(tensor, *map(encoded, strides), CONSTANT=is_constant, UNIT=is_unit)


def fours(shape: tuple[int, ...], states: int, lanes: int, by_lanes: bool, device: torch.device) -> Tensor:
    """Memory for Fours, (*shape, fours, 4, length, lanes), in the order in which a tile moves them; `shape` ends with
    the length."""
    if by_lanes:
        return torch.empty(*shape, states // 4, lanes, 4, device=device).movedim((-4, -1), (-2, -3))
    return torch.empty(*shape, lanes, states // 4, 4, device=device).movedim((-4, -3), (-2, -1))


def fours_view(memory: Tensor) -> Fours:
    """(batch, groups, fours, 4, length, lanes)."""
    batch, group, four, _, time, lane = (encoded(stride // 4) for stride in memory.stride())
    is_unit = tl.constexpr(memory.stride(2) == 4)
    return Fours(memory, batch, group, time, four, lane, CONSTANT=tl.constexpr(False), UNIT=is_unit)


def modulation_in_fours(tensor: Tensor, dims: int, groups: int, states: int, by_lanes: bool) -> Fours:
    """A copy of B or C, (batch, [groups,] states, length, *lanes), filled up with zeros to so many states."""
    tensor = tensor.unsqueeze(1) if tensor.dim() == dims else tensor
    batch, own, given, length, *lanes = tensor.shape
    tensor = tensor.reshape(batch, own, given, length, math.prod(lanes))
    if own != groups:
        tensor = tensor.repeat_interleave(groups // own, 1)
    if given < states:
        tensor = torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, states - given))
    memory = fours((batch, groups, length), states, tensor.shape[-1], by_lanes, tensor.device)
    return fours_view(memory.copy_(tensor.unflatten(2, (-1, 4))))


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

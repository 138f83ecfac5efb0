"""Which tile a program works on, how the work is divided among programs, and the launch itself."""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .layout import Sizes, encoded, lane_stride

IS_INTERPRETED = triton.knobs.runtime.interpret
RESIDENT_WARPS = 8  # on a multiprocessor, where threads have as many registers as they can
FEWEST_LANES = 16  # below that a tile along lanes would be mostly empty


class Tiling(NamedTuple):
    """A tile of channels x lanes, the warps that work on it, and how many programs of a backward pass keep a device
    busy; each has memory of its own for checkpoints."""

    block_d: int
    block_s: int
    warps: int = 1
    programs: int = 1


class Tilings(NamedTuple):
    """The tiles of one kernel: where channels are the inner axis, and where lanes are."""

    channels: Tiling
    lanes: Tiling

    def of(self, u: Tensor) -> Tiling:
        """The tile for sequences like u. The interpreter takes as long for a wide tile as for a narrow one."""
        lanes = math.prod(u.shape[3:])
        if IS_INTERPRETED:
            return Tiling(32, min(32, next_power_of_two(lanes)), programs=2)
        driver = triton.runtime.driver.active
        wider = driver.get_current_target().warp_size // 32
        processors = driver.utils.get_device_properties(u.device.index or 0)["multiprocessor_count"]
        along_lanes = lanes >= FEWEST_LANES and (lane_stride(u) or 0) < u.stride(1)
        d, s, warps, _ = self.lanes if along_lanes else self.channels
        d, s = (d, s * wider) if along_lanes else (d * wider, s)
        return Tiling(d, s, warps, processors * RESIDENT_WARPS // warps)


def next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def sizes_of(u: Tensor, states: int, groups: int, tiling: Tiling) -> Sizes:
    """The numbers of a call, not yet encoded, for the first launch."""
    batch, channels, length, *lanes = u.shape
    lanes, channels = math.prod(lanes), channels // groups
    channel_blocks, lane_blocks = ceil(channels, tiling.block_d), ceil(lanes, tiling.block_s)
    sequence_slices = max(1, min(batch * lane_blocks, tiling.programs // groups))
    channel_slices = max(1, min(channel_blocks, round(tiling.programs / (groups * sequence_slices))))
    return Sizes(
        length, channels, lanes, states, 0, groups, channel_blocks, lane_blocks, batch * lane_blocks,
        channel_slices, sequence_slices,
    )  # fmt: skip


def run(kernel, programs: int, device: torch.device, tiling: Tiling, *arguments, sizes: Sizes, **options) -> None:
    """Launch on the device of the tensors, in its current stream."""
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on_device:
        kernel[(programs,)](
            *arguments, sizes=Sizes(*map(encoded, sizes)), **options, BLOCK_D=tiling.block_d, BLOCK_S=tiling.block_s,
            num_warps=tiling.warps, enable_fp_fusion=True,
        )  # fmt: skip

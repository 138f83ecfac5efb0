"""Training examples by number: what example n of a run is depends on the run's seed and n alone.

Neither the batch size, nor the number of processes, nor where a run was interrupted changes an example.
"""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssmvdm.data.source import ClipSource
from ssmvdm.diffusion import to_model_range


class Example(NamedTuple):
    """x0 (3, f, h, w) in [-1, 1], step t (), noise like x0; a batch of them has a leading axis."""

    x0: Tensor
    t: Tensor
    noise: Tensor


class Examples(Dataset):
    """examples[n] of the run with this seed."""

    def __init__(self, source: ClipSource, seed: int, timesteps: int):
        self.source, self.seed, self.timesteps = source, seed, timesteps

    def __getitem__(self, number: int) -> Example:
        # NumPy's generator has 128 bits of seed; torch's on the CPU has 32, and long runs would draw some noise twice.
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        x0 = to_model_range(torch.from_numpy(self.source.training_clip(self.seed, number).video))
        t = torch.tensor(generator.integers(self.timesteps))
        return Example(x0, t, torch.from_numpy(generator.standard_normal(tuple(x0.shape), dtype=np.float32)))


class Numbers:
    """The numbers of one process's batches, without end: pass i of all processes sees a contiguous range of numbers,
    from `seen` on, of which process `rank` has the rank-th part."""

    def __init__(self, seen: int, batch: int, rank: int = 0, processes: int = 1):
        self.first, self.batch, self.stride = seen + rank * batch, batch, batch * processes

    def __iter__(self) -> Iterator[list[int]]:
        for index in count():
            start = self.first + index * self.stride
            yield list(range(start, start + self.batch))


def batches(examples: Examples, numbers: Numbers, workers: int, pin_memory: bool) -> Iterator[Example]:
    """Batches of Example, loaded ahead by `workers` processes."""
    return iter(DataLoader(examples, batch_sampler=numbers, num_workers=workers, pin_memory=pin_memory))

"""Training examples by number: what example n of a run is depends on the run's seed and n alone.

Neither the batch size, nor the number of processes, nor where a run was interrupted changes an example.
"""

from collections.abc import Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ssmvdm.data.embeddings import check_captions, read_embeddings
from ssmvdm.data.files import FileSource
from ssmvdm.data.source import ClipSource
from ssmvdm.diffusion import to_model_range
from ssmvdm.training_config import TrainingConfig


class Example(NamedTuple):
    """x0 (3, f, h, w) in [-1, 1], step t (), noise like x0; a batch of them has a leading axis.

    cond (cond_dim,): the vector of the clip's caption. cond_drop () bool: whether to learn without it. With no
    condition, (0,) and false. focus_present () bool: whether frames attend only to themselves.
    """

    x0: Tensor
    t: Tensor
    noise: Tensor
    cond: Tensor
    cond_drop: Tensor
    focus_present: Tensor


class Batch(NamedTuple):
    """examples: side by side. left_out: files that turned out unusable when these were loaded, each with the reason."""

    examples: Example
    left_out: list[str]


class Condition(NamedTuple):
    """vectors: caption -> (cond_dim,). drop: share of the examples that get the null embedding."""

    vectors: Mapping[str, Tensor]
    drop: float


class Examples(Dataset):
    """examples[n] of the run with this seed, and batches of them, as DataLoader asks for. focus_present: share of the
    examples that have it."""

    def __init__(
        self,
        source: ClipSource,
        seed: int,
        timesteps: int,
        condition: Condition | None = None,
        focus_present: float = 0.0,
    ):
        self.source, self.seed, self.timesteps = source, seed, timesteps
        self.condition, self.focus_present = condition, focus_present

    def __getitem__(self, number: int) -> Example:
        # NumPy's generator has 128 bits of seed; torch's on the CPU has 32, and long runs would draw some noise twice.
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        clip = self.source.training_clip(self.seed, number)
        x0 = to_model_range(torch.from_numpy(clip.video))
        t = torch.tensor(generator.integers(self.timesteps))
        noise = torch.from_numpy(generator.standard_normal(tuple(x0.shape), dtype=np.float32))
        cond, is_dropped = torch.empty(0), False
        if self.condition is not None:
            vectors, drop = self.condition
            cond, is_dropped = vectors[str(clip.caption)], generator.random() < drop
        is_focused = generator.random() < self.focus_present
        return Example(x0, t, noise, cond, torch.tensor(is_dropped), torch.tensor(is_focused))

    def __getitems__(self, numbers: list[int]) -> Batch:
        unusable = self.source.unusable if isinstance(self.source, FileSource) else {}
        known = len(unusable)
        examples = default_collate([self[number] for number in numbers])
        return Batch(examples, [f"{video}: {reason}" for video, reason in islice(unusable.items(), known, None)])


def open_condition(config: TrainingConfig, source: ClipSource) -> Condition | None:
    """What a network with a condition is shown beside the clips; None for one without. ValueError if it cannot be."""
    if config.network.cond_dim is None:
        return None
    if config.data.embeddings is None:
        raise ValueError("data.embeddings: a network with cond_dim needs the vectors of the captions, got None")
    videos = source.training if isinstance(source, FileSource) else ()
    silent = next((video.path for video in videos if not video.captions), None)
    if silent is not None:
        raise ValueError(f"data.embeddings: {silent} has no caption that could have a vector")
    path = Path(config.data.embeddings)
    vectors = read_embeddings(path, config.network.cond_dim)
    check_captions((caption for video in videos for caption in video.captions), vectors, path)
    return Condition(vectors, config.cond_drop)


class Numbers:
    """The numbers of one process's batches, without end: pass i of all processes sees a contiguous range of numbers,
    from `seen` on, of which process `rank` has the rank-th part."""

    def __init__(self, seen: int, batch: int, rank: int = 0, processes: int = 1):
        self.first, self.batch, self.stride = seen + rank * batch, batch, batch * processes

    def __iter__(self) -> Iterator[list[int]]:
        for index in count():
            start = self.first + index * self.stride
            yield list(range(start, start + self.batch))


def batches(examples: Examples, numbers: Numbers, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Batches without end, loaded ahead by `workers` processes."""
    options = {"num_workers": workers, "pin_memory": pin_memory, "collate_fn": _as_it_is}
    return iter(DataLoader(examples, batch_sampler=numbers, **options))


def _as_it_is(batch: Batch) -> Batch:
    return batch

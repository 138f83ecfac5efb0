"""Where clips come from, whatever they are stored as.

A source answers two questions: which clip is training example number n, and which clips are held out. Both answers are
functions of their arguments alone, so that a run that is resumed, or split over several processes, sees what the
uninterrupted one would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ssmvdm.data import maze, moving_shapes
from ssmvdm.data.checks import check_clip_arguments

TRAIN, HELD_OUT = 0, 1  # first word of a procedural clip's seed


class Clip(NamedTuple):
    """video (3, frames, size, size) float32 in [0, 1]; caption, where the data set has one."""

    video: np.ndarray
    caption: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """Which clips a network learns from.

    name: "maze" (a first-person walk) or "shapes" (discs and squares bouncing in a box), both computed from a seed.
    frames: of a clip. size: height and width in pixels.

    Raises ValueError naming the field, what was expected and what came.
    """

    name: str = "maze"
    frames: int = 16
    size: int = 32

    def __post_init__(self):
        if self.name not in PROCEDURAL:
            raise ValueError(f"name must be one of {', '.join(PROCEDURAL)}, got {self.name!r}")
        check_clip_arguments(0, self.frames, self.size)


class ClipSource(Protocol):
    """What training, sampling and evaluation read clips from."""

    def training_clip(self, seed: int, example: int) -> Clip:
        """Example number `example` (0, 1, ...) of the training run with this seed."""
        ...

    def held_out_clips(self) -> Iterator[Clip]:
        """Clips that no training run sees, always in the same order; endless where they are computed."""
        ...


@dataclass(frozen=True)
class ProceduralSource:
    """Clips computed from a seed. make: (seed, frames, size) -> video."""

    make: Callable[[tuple[int, ...], int, int], np.ndarray]
    frames: int
    size: int

    def training_clip(self, seed: int, example: int) -> Clip:
        return Clip(self.make((TRAIN, seed, example), self.frames, self.size))

    def held_out_clips(self) -> Iterator[Clip]:
        example = 0
        while True:
            yield Clip(self.make((HELD_OUT, example), self.frames, self.size))
            example += 1


PROCEDURAL = {"maze": maze.clip, "shapes": moving_shapes.clip}


def open_source(config: DataConfig) -> ClipSource:
    """The clips that `config` names."""
    return ProceduralSource(PROCEDURAL[config.name], config.frames, config.size)

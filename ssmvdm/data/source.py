"""Where clips come from, whatever they are stored as.

A source answers two questions: which clip is training example number n, and which clips are held out. Both answers are
functions of their arguments alone, so that a run that is resumed, or split over several processes, sees what the
uninterrupted one would have seen.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ssmvdm.data import maze, moving_shapes
from ssmvdm.data.checks import check_clip_arguments
from ssmvdm.data.clip import Clip
from ssmvdm.data.datasets import DATA_SETS
from ssmvdm.data.files import FileSource
from ssmvdm.data.videos import MODULE_OF_SUFFIX
from ssmvdm.fields import check_types

__all__ = ["DATA_SETS", "PROCEDURAL", "Clip", "ClipSource", "DataConfig", "ProceduralSource", "open_source"]

TRAIN, HELD_OUT = 0, 1  # first word of a procedural clip's seed
PROCEDURAL = {"maze": maze.clip, "shapes": moving_shapes.clip}


@dataclass(frozen=True)
class DataConfig:
    """Which clips a network learns from.

    name: "maze" (a first-person walk) or "shapes" (discs and squares bouncing in a box), both computed from a seed; or
        a data set on disk: "folder", "minerl", "gqn-mazes", "carla", "ucf101", "msrvtt", "moving-mnist", each in the
        form that ssmvdm.data.datasets describes.
    frames: of a clip. size: height and width in pixels.
    path: where the data set on disk is. A configuration may leave it open, `open_source` needs it.
    merge_splits: training clips and held-out clips both come from all videos, as in the paper's runs. By default no
        video is in both.
    max_unusable: the largest share of the videos that may turn out to be broken, too short or of the wrong shape.
    embeddings: a safetensors file with a vector for each caption (`ssmvdm.data.embeddings`), which a network with a
        condition is shown; of data sets on disk that have captions.

    Raises ValueError naming the field, what was expected and what came.
    """

    name: str = "maze"
    frames: int = 16
    size: int = 32
    path: str | None = None
    merge_splits: bool = False
    max_unusable: float = 0.1
    embeddings: str | None = None

    def __post_init__(self):
        check_types(self)
        known = (*PROCEDURAL, *DATA_SETS)
        if self.name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}, got {self.name!r}")
        check_clip_arguments(0, self.frames, self.size)
        if not 0 <= self.max_unusable <= 1:
            raise ValueError(f"max_unusable must be a number from 0 to 1, got {self.max_unusable!r}")
        if self.name in PROCEDURAL:
            for name in ("path", "embeddings", "merge_splits"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for data sets on disk, {self.name!r} is computed")
        elif self.frames > (DATA_SETS[self.name].frames or self.frames):
            raise ValueError(f"frames: a video of {self.name} has {DATA_SETS[self.name].frames}, got {self.frames}")


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

    def held_out_clip(self, example: int) -> Clip:
        return Clip(self.make((HELD_OUT, example), self.frames, self.size))

    def held_out_clips(self) -> Iterator[Clip]:
        return map(self.held_out_clip, itertools.count())


def open_source(config: DataConfig) -> ClipSource:
    """The clips that `config` names. ValueError if there are none, or if what reads them is not installed."""
    if config.name in PROCEDURAL:
        return ProceduralSource(PROCEDURAL[config.name], config.frames, config.size)
    if config.path is None:
        raise ValueError(f"path: {config.name!r} needs the place of its files, got None")
    data_set = DATA_SETS[config.name]
    training, held_out = data_set.split(Path(config.path))
    if both := set(training) & set(held_out):
        raise ValueError(f"path: {min(file.path for file in both)} is listed for training and as held out")
    if config.merge_splits:
        training = held_out = (*training, *held_out)
    if not training:
        raise ValueError(f"path: there are no training videos below {config.path}")
    for suffix in sorted({file.path.suffix.lower() for file in (*training, *held_out)} & MODULE_OF_SUFFIX.keys()):
        module = MODULE_OF_SUFFIX[suffix]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"path: {suffix} files need {module}: pip install 'ssmvdm-kernels[video]'")
    return FileSource(training, held_out, config.frames, config.size, data_set.edge, config.max_unusable)

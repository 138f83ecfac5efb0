"""Clips of videos on disk.

Which file and which frames example number n shows is drawn from (seed, n) alone. A file that cannot be used is left
out: training then draws another one for that example, again from (seed, n), and the held-out clips go on with the
next. It is reported once, with its path and the reason, as a warning of the logger "ssmvdm.data", and counted; when
more than the allowed share of the data set has turned out unusable, ValueError says so.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from ssmvdm.data.clip import Clip
from ssmvdm.data.frames import fit
from ssmvdm.data.videos import open_video

OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors in opening a file for which it cannot be blamed
ORDER, EXAMPLE, HELD_OUT = 0, 1, 2  # first word of the seeds of what is drawn
logger = logging.getLogger("ssmvdm.data")


class UnusableVideo(ValueError):
    """A file that holds no video of the kind that was asked for; the message says why."""


@contextmanager
def foreign_bytes() -> Iterator[None]:
    """Whatever goes wrong within becomes UnusableVideo: what parsers raise on foreign bytes has no common type."""
    try:
        yield
    except (ImportError, MemoryError):  # of this machine, not of the file
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise
        reason = getattr(error, "strerror", None) or str(error)  # without the path, if the system says it
        raise UnusableVideo(reason or type(error).__name__) from error


@dataclass(frozen=True)
class VideoFile:
    """path of the file. lane: which video of an array of several. captions: what is said about it, in any number."""

    path: Path
    lane: int | None = None
    captions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.path) if self.lane is None else f"{self.path}, video {self.lane}"


@dataclass
class FileSource:
    """Random windows of `frames` frames of the training files; one fixed window of each held-out file.

    Each training file is shown once in every len(training) examples, in an order that changes each time.
    edge: height and width that every file must have, None for any. max_unusable: share of the files.
    unusable: the files that were found to be so, and why.
    """

    training: tuple[VideoFile, ...]
    held_out: tuple[VideoFile, ...]
    frames: int
    size: int
    edge: int | None = None
    max_unusable: float = 0.1
    unusable: dict[VideoFile, str] = field(default_factory=dict)

    def training_clip(self, seed: int, example: int) -> Clip:
        for index in self._candidates(seed, example):
            # Seeded for each file, so that an example does not depend on which files were tried for it.
            clip = self._clip(self.training[index], np.random.default_rng((EXAMPLE, seed, example, index)))
            if clip is not None:
                return clip
        raise ValueError(f"none of the {len(self.training)} training videos can be used")

    def _candidates(self, seed: int, example: int) -> Iterator[int]:
        """Which training file it is, then those that stand in for it, in order."""
        files = len(self.training)
        yield _order(seed, example // files, files)[example % files]
        yield from np.random.default_rng((EXAMPLE, seed, example)).permutation(files)

    def held_out_clips(self) -> Iterator[Clip]:
        for index, video in enumerate(self.held_out):
            clip = self._clip(video, np.random.default_rng((HELD_OUT, index)))
            if clip is not None:
                yield clip

    def _clip(self, video: VideoFile, rng: np.random.Generator) -> Clip | None:
        """A window of the video and one of its captions; None where the file is unusable."""
        if video in self.unusable:
            return None
        try:
            frames = read_window(video, rng, self.frames, self.size, self.edge)
        except UnusableVideo as error:
            self._leave_out(video, str(error))
            return None
        caption = video.captions[rng.integers(len(video.captions))] if video.captions else None
        return Clip(frames, caption)

    def _leave_out(self, video: VideoFile, reason: str) -> None:
        self.unusable[video] = reason
        logger.warning("left out: %s: %s", video, reason)
        self.check_share(len(self.unusable), f"{video}: {reason}")

    def check_share(self, unusable: int, last: str) -> None:
        """ValueError if so many files are more than may turn out unusable."""
        total = len({*self.training, *self.held_out})
        if unusable > self.max_unusable * total:
            raise ValueError(
                f"{unusable} of the {total} videos cannot be used, more than the allowed share of "
                f"{self.max_unusable:g}; the last one: {last}"
            )


def read_window(video: VideoFile, rng: np.random.Generator, frames: int, size: int, edge: int | None) -> np.ndarray:
    """A window drawn uniformly from all that fit: (3, frames, size, size) float32. Raises UnusableVideo."""
    with foreign_bytes(), open_video(video.path, video.lane) as opened:
        if edge is not None and opened.shape != (edge, edge):
            raise ValueError(f"its frames are {opened.shape[0]} x {opened.shape[1]}, expected {edge} x {edge}")
        if opened.frames < frames:
            raise ValueError(f"has {opened.frames} frames, {frames} are needed")
        start = int(rng.integers(opened.frames - frames + 1))
        return np.stack([fit(frame, size) for frame in opened.read(start, frames)], axis=1)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, files: int) -> np.ndarray:
    return np.random.default_rng((ORDER, seed, epoch)).permutation(files)

"""What every measure here takes for a video, and videos taken a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np


def checked_video(video: np.ndarray, name: str = "video") -> np.ndarray:
    """The video (3, frames, height, width) as float32. ValueError naming it for another shape, type, or a number
    outside [0, 1]."""
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[0] != 3 or not video.size or video.dtype.kind != "f":
        raise ValueError(
            f"{name}: expected floating-point (3, frames, height, width), got {video.dtype} {tuple(video.shape)}"
        )
    low, high = video.min(), video.max()
    if not (0.0 <= low and high <= 1.0):  # not a number is not between them either
        raise ValueError(f"{name}: expected numbers in [0, 1], got {low} to {high}")
    return video.astype(np.float32, copy=False)


def batches(videos: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """At most `size` videos at a time as (n, 3, frames, height, width). ValueError when one differs in shape from the
    first, or for none at all."""
    videos, shape, seen = iter(videos), None, 0
    while chunk := list(itertools.islice(videos, size)):
        chunk = [checked_video(video, f"video {seen + i}") for i, video in enumerate(chunk)]
        shape = shape or chunk[0].shape
        for i, video in enumerate(chunk):
            if video.shape != shape:
                raise ValueError(f"video {seen + i}: expected {shape} like the first, got {video.shape}")
        seen += len(chunk)
        yield np.stack(chunk)
    if not seen:
        raise ValueError("videos: expected at least one, got none")

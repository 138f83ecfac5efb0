"""Generated videos against real ones: every measure of sets, in one pass over each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ssmvdm.evaluation.features import FeatureExtractor
from ssmvdm.evaluation.frames import FRAME_STATISTICS, frame_statistics, lag_differences, wasserstein
from ssmvdm.evaluation.frechet import frechet_distance
from ssmvdm.evaluation.videos import batches


@dataclass(frozen=True)
class VideoSet:
    """What is kept of n videos of one shape: features (n, d), statistics of frames (n, frames, 3), differences of
    frames k apart (n, frames - 1), and the shape (3, frames, height, width) of each."""

    features: np.ndarray
    statistics: np.ndarray
    differences: np.ndarray
    shape: tuple[int, ...]


def summarize(videos: Iterable[np.ndarray], extractor: FeatureExtractor, batch: int = 8) -> VideoSet:
    """One pass over videos (3, frames, height, width) in [0, 1], `batch` in memory at a time."""
    features, statistics, differences = [], [], []
    for chunk in batches(videos, batch):
        features.append(extractor.features(chunk))
        statistics += [frame_statistics(video) for video in chunk]
        differences += [lag_differences(video) for video in chunk]
        shape = chunk.shape[1:]
    return VideoSet(np.concatenate(features), np.stack(statistics), np.stack(differences), shape)


def evaluate(
    real: Iterable[np.ndarray], fake: Iterable[np.ndarray], extractor: FeatureExtractor, *, batch: int = 8
) -> dict:
    """How far the fake videos are from the real ones; ready for JSON.

    metric, stamp, frechet_distance: of the extractor's features; the stamp says what the number is not good for.
    floor: the distance of one half of the real videos from the other, which says what perfect samples would get from
        so few videos; None for fewer than four of them.
    features: the extractor's details, real, fake: the numbers of videos, shape: of each.
    frame_statistics: for each of brightness, contrast and sharpness, the mean of both sets and the Wasserstein distance
        of its distributions over all frames.
    consistency: for lag k = 1 .. frames - 1, mean and standard deviation over videos of the root mean square
        difference of frames k apart, in both sets; gap: mean distance of the two curves over the mean of the real one.
        None for videos of one frame.

    ValueError for videos that are not (3, frames, height, width) in [0, 1] or differ in shape, and for fewer than two.
    """
    real_set, fake_set = summarize(real, extractor, batch), summarize(fake, extractor, batch)
    if real_set.shape != fake_set.shape:
        raise ValueError(f"fake: expected videos of {real_set.shape} like the real ones, got {fake_set.shape}")
    halves = real_set.features[::2], real_set.features[1::2]
    return {
        "metric": extractor.name,
        "stamp": extractor.stamp,
        "frechet_distance": frechet_distance(real_set.features, fake_set.features),
        "floor": frechet_distance(*halves) if len(halves[1]) > 1 else None,
        "features": extractor.details,
        "real": len(real_set.features),
        "fake": len(fake_set.features),
        "shape": list(real_set.shape),
        "frame_statistics": _frame_statistics(real_set.statistics, fake_set.statistics),
        "consistency": _consistency(real_set.differences, fake_set.differences),
    }


def _frame_statistics(real: np.ndarray, fake: np.ndarray) -> dict:
    return {
        name: {
            "real": float(real[..., i].mean()),
            "fake": float(fake[..., i].mean()),
            "wasserstein": wasserstein(real[..., i], fake[..., i]),
        }
        for i, name in enumerate(FRAME_STATISTICS)
    }


def _consistency(real: np.ndarray, fake: np.ndarray) -> dict | None:
    if not real.shape[1]:
        return None
    curves = {"lag": list(range(1, real.shape[1] + 1))}
    for name, differences in (("real", real), ("fake", fake)):
        curves |= {name: differences.mean(axis=0).tolist(), f"{name}_std": differences.std(axis=0).tolist()}
    distance, scale = np.abs(real.mean(axis=0) - fake.mean(axis=0)).mean(), real.mean()
    return curves | {"gap": float(distance / scale) if scale else None}  # of still videos no share can be taken

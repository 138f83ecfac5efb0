"""Measures of single frames, and how frames of one video differ over time. All in float64.

Against a reference, frame by frame: PSNR and SSIM. Between sets, where no pairs exist: how three statistics of a frame
are distributed. Over time: the root mean square difference of frames k apart, for every k.
"""

from __future__ import annotations

import numpy as np

SSIM_SIGMA = 1.5  # of the Gaussian window, pixels (Wang et al. 2004)
SSIM_WINDOW = 11  # pixels, as there
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # (K_1 L)^2 and (K_2 L)^2 for a range L = 1
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
FRAME_STATISTICS = ("brightness", "contrast", "sharpness")


def psnr(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """-10 log10 of the mean squared error, in dB for a range of 1: (frames,) of videos (3, frames, height, width).
    Infinite where a frame equals its reference."""
    video, reference = _pair(video, reference)
    error = np.square(video - reference).mean(axis=(0, 2, 3))
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(error)


def ssim(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over colours and every place a window of 11 x 11 fits:
    (frames,) of videos (3, frames, height, width). ValueError for frames smaller than the window."""
    x, y = _pair(video, reference)
    if min(x.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"video: SSIM needs at least {SSIM_WINDOW} pixels, got frames of {x.shape[2:]}")
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = SSIM_CONSTANTS
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2.0 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(axis=(0, 2, 3))


def _pair(video: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if np.ndim(video) != 4 or np.shape(video) != np.shape(reference):
        raise ValueError(
            f"video: expected the reference's shape (3, frames, height, width), got {np.shape(video)} "
            f"and {np.shape(reference)}"
        )
    return np.asarray(video, np.float64), np.asarray(reference, np.float64)


def _windowed(image: np.ndarray) -> np.ndarray:
    """The Gaussian window's mean at every place where it fits, over the last two axes."""
    weights = np.exp(-0.5 * np.square((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / SSIM_SIGMA))
    weights /= weights.sum()
    for axis in (-2, -1):
        image = np.lib.stride_tricks.sliding_window_view(image, len(weights), axis=axis) @ weights
    return image


def frame_statistics(video: np.ndarray) -> np.ndarray:
    """(frames, 3) of a video (3, frames, height, width): mean, standard deviation, and root mean square difference of
    neighbouring pixels, all of its luma."""
    grey = np.tensordot(LUMA, np.asarray(video, np.float64), axes=1)  # (frames, height, width)
    steps = [np.diff(grey, axis=axis) for axis in (1, 2)]
    count = max(sum(step[0].size for step in steps), 1)  # a single pixel has no neighbour
    sharpness = np.sqrt(sum(np.square(step).sum(axis=(1, 2)) for step in steps) / count)
    return np.stack([grey.mean(axis=(1, 2)), grey.std(axis=(1, 2)), sharpness], axis=1)


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """The 1-Wasserstein distance of two sets of numbers: the area between their distribution functions."""
    a, b = np.sort(np.ravel(a)), np.sort(np.ravel(b))
    if not a.size or not b.size:
        raise ValueError(f"wasserstein: expected at least one number in each set, got {a.size} and {b.size}")
    places = np.sort(np.concatenate([a, b]))
    below_a, below_b = (np.searchsorted(x, places[:-1], side="right") / x.size for x in (a, b))
    return float(np.abs(below_a - below_b) @ np.diff(places))


def lag_differences(video: np.ndarray) -> np.ndarray:
    """Root mean square difference of frames k apart, k = 1 .. frames - 1: (frames - 1,) of (3, frames, height, width).

    Over few frames it shows flicker, over many whether the video goes on changing. From the frames' inner products, so
    that a long video takes one product of matrices instead of frames^2 differences; the mean frame is taken off before,
    which leaves differences as they are and the products free of what would cancel.
    """
    frames = np.moveaxis(np.asarray(video, np.float64), 1, 0).reshape(np.shape(video)[1], -1)
    frames = frames - frames.mean(axis=0)
    products = frames @ frames.T
    squares = np.diag(products)
    differences = np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0) / frames.shape[1]
    return np.sqrt([np.diagonal(differences, lag).mean() for lag in range(1, len(frames))])

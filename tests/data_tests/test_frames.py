"""What is done to a frame: bilinear without antialias, the crop about the centre, and numbers in [0, 1]."""

import numpy as np
import pytest

from ssmvdm.data.frames import fit

EPS = np.finfo(np.float32).eps


def bilinear(frame, height, width):
    """By definition: the pixel centres of the result among the pixel centres of the frame, in float64."""
    frame = frame.astype(np.float64)
    for axis, length in ((0, height), (1, width)):
        old = frame.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0.0, old - 1.0)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (place - low).reshape(-1, *(1,) * (2 - axis))
        frame = frame.take(low, axis) * (1 - share) + frame.take(high, axis) * share
    return frame


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 32), (64, 64, 64), (16, 40, 8), (41, 17, 8), (9, 9, 20), (128, 128, 32), (1, 5, 2)],
)
def test_the_frame_is_resized_and_cropped(height, width, size):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    shorter = min(height, width)
    whole = bilinear(frame / 255.0, size * height // shorter, size * width // shorter)
    top, left = (whole.shape[0] - size) // 2, (whole.shape[1] - size) // 2
    square = fit(frame, size)
    assert square.shape == (3, size, size)
    assert square.dtype == np.float32
    # Places are rounded relative to their size, the longer edge; values are sums of four products of three factors.
    tolerance = (max(height, width) + 8) * EPS
    assert np.abs(square.transpose(1, 2, 0) - whole[top : top + size, left : left + size]).max() <= tolerance
    assert 0.0 <= square.min() <= square.max() <= 1.0


def test_halving_is_the_mean_of_four_pixels():
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    mean = (frame / 255.0).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(fit(frame, 32).transpose(1, 2, 0) - mean).max() <= 4 * EPS


def test_bytes_and_numbers_give_the_same():
    frame = np.random.default_rng(2).integers(0, 256, (12, 12, 3), np.uint8)
    assert np.array_equal(fit(frame, 8), fit((frame / 255.0).astype(np.float32), 8))


def test_grey_becomes_three_equal_channels():
    frame = np.random.default_rng(3).integers(0, 256, (12, 12, 1), np.uint8)
    assert np.array_equal(fit(frame, 8), fit(np.repeat(frame, 3, axis=2), 8))


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_numbers_outside_the_range_are_refused(value):
    frame = np.full((8, 8, 3), 0.5, np.float32)
    frame[3, 3, 1] = value
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        fit(frame, 8)

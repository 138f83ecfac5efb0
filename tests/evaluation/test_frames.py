"""Measures of frames against scikit-image, scipy and plain loops."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ssmvdm.data import maze
from ssmvdm.evaluation.frames import frame_statistics, lag_differences, psnr, ssim, wasserstein
from ssmvdm.evaluation.videos import batches, checked_video

EPS = np.finfo(np.float64).eps


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return maze.clip((3,), 6, 24)


@pytest.fixture(scope="module")
def noisy(video) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0.0, 0.1, video.shape)
    return np.clip(video + noise, 0.0, 1.0).astype(np.float32)


def test_psnr_agrees_with_scikit_image(video, noisy):
    pairs = zip(noisy.transpose(1, 0, 2, 3), video.transpose(1, 0, 2, 3), strict=True)
    expected = [peak_signal_noise_ratio(b.astype(float), a.astype(float), data_range=1.0) for a, b in pairs]
    assert np.abs(psnr(noisy, video) - expected).max() <= video[:, 0].size * EPS * max(expected)


def test_ssim_agrees_with_scikit_image(video, noisy):
    for k in range(video.shape[1]):
        expected = structural_similarity(
            video[:, k].astype(float), noisy[:, k].astype(float), data_range=1.0, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        # Variances are differences of sums of 121 terms of size 1, divided by (0.03)^2 at the least.
        assert abs(ssim(noisy, video)[k] - expected) <= 4 * 121 * EPS / 0.03**2


def test_a_video_is_like_itself(video):
    assert np.isinf(psnr(video, video)).all()
    assert np.array_equal(ssim(video, video), np.ones(video.shape[1]))


def test_constant_frames_have_the_formulas():
    x, y = np.full((3, 2, 16, 16), 0.25), np.full((3, 2, 16, 16), 0.75)
    assert np.allclose(psnr(x, y), -10.0 * np.log10(0.25), rtol=8 * EPS, atol=0.0)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    # Of the structure term only c2 / c2 is left, and the rounding of the variances.
    assert np.abs(ssim(x, y) - expected).max() <= 4 * 121 * EPS / 0.03**2


def test_pairs_must_match(video):
    with pytest.raises(ValueError, match=r"reference's shape.*\(3, 5, 24, 24\) and \(3, 6, 24, 24\)"):
        psnr(video[:, 1:], video)
    with pytest.raises(ValueError, match=r"at least 11 pixels, got frames of \(24, 10\)"):
        ssim(video[..., :10], video[..., :10])


@pytest.mark.parametrize(("count_a", "count_b"), [(1, 1), (5, 5), (7, 40)])
def test_wasserstein_agrees_with_scipy(count_a, count_b):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=count_a), rng.normal(0.3, 2.0, size=count_b)
    bound = (count_a + count_b) ** 2 * EPS * (np.abs(a).max() + np.abs(b).max())
    assert abs(wasserstein(a, b) - wasserstein_distance(a, b)) <= bound
    assert wasserstein(a, a) == 0.0
    assert abs(wasserstein(a, a + 0.5) - 0.5) <= bound


def test_statistics_of_frames_that_are_known():
    grey = np.zeros((3, 3, 4, 4))
    grey[:, 1] = 0.5
    grey[:, 2, :, ::2] = 1.0  # vertical stripes: all horizontal steps are 1, all vertical ones 0
    expected = [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.5, 0.5, np.sqrt(0.5)]]
    assert np.allclose(frame_statistics(grey), expected, rtol=16 * EPS, atol=16 * EPS)


def test_lag_differences_are_those_of_the_plain_loop(noisy):
    x = noisy.astype(np.float64)
    frames = x.shape[1]
    expected = [np.sqrt(np.square(x[:, lag:] - x[:, :-lag]).mean()) for lag in range(1, frames)]
    # The squares are off by the rounding of products of `size` terms, their root by that over twice the root.
    bound = 4 * x[:, 0].size * EPS / (2.0 * min(expected))
    assert np.abs(lag_differences(noisy) - expected).max() <= bound


def test_lag_differences_see_stillness_flicker_and_drift():
    still = np.full((3, 8, 4, 4), 0.3)
    assert np.array_equal(lag_differences(still), np.zeros(7))
    flicker = still.copy()
    flicker[:, ::2] = 0.8
    assert np.allclose(lag_differences(flicker), [0.5, 0.0] * 3 + [0.5], rtol=0.0, atol=np.sqrt(8 * 48 * EPS))
    drift = np.broadcast_to(np.arange(8.0).reshape(1, 8, 1, 1) / 8.0, still.shape)
    assert np.allclose(lag_differences(drift), np.arange(1, 8) / 8.0, rtol=48 * EPS, atol=0.0)
    assert lag_differences(still[:, :1]).shape == (0,)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((1, 2, 4, 4), np.float32), r"got float32 \(1, 2, 4, 4\)"),
        (np.zeros((3, 0, 4, 4), np.float32), r"got float32 \(3, 0, 4, 4\)"),
        (np.zeros((3, 2, 4, 4), np.uint8), "got uint8"),
        (np.full((3, 2, 4, 4), 1.5, np.float32), "got 1.5 to 1.5"),
        (np.full((3, 2, 4, 4), np.nan, np.float32), "got nan to nan"),
    ],
)
def test_what_is_no_video_is_refused(video, message):
    with pytest.raises(ValueError, match=f"video: expected .*{message}"):
        checked_video(video)


def test_batches_hold_all_videos_in_order_and_refuse_a_different_shape(video):
    halves = [video, video[:, ::-1], 1.0 - video]
    assert [len(batch) for batch in batches(halves, 2)] == [2, 1]
    assert np.array_equal(np.concatenate(list(batches(iter(halves), 2))), np.stack(halves))
    with pytest.raises(ValueError, match=r"video 2: expected \(3, 6, 24, 24\) like the first, got \(3, 5, 24, 24\)"):
        list(batches([video, video, video[:, :5]], 2))
    with pytest.raises(ValueError, match="at least one, got none"):
        list(batches([], 2))

"""The network that is trained on the data at hand: that its distance orders what is worse, and repeats itself."""

import numpy as np
import pytest
import torch

from ssmvdm.data import maze, moving_shapes
from ssmvdm.evaluation.features import NOT_COMPARABLE
from ssmvdm.evaluation.frechet import frechet_distance
from ssmvdm.evaluation.offline_features import OfflineFeatures

FRAMES, SIZE, COUNT = 8, 16, 64


@pytest.fixture(scope="module")
def extractor() -> OfflineFeatures:
    torch.manual_seed(1)  # must not matter
    return OfflineFeatures.train(list(maze.clips(0, COUNT, FRAMES, SIZE)), steps=150)


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    """Two halves of clips that it has not seen."""
    return maze.clips(1, COUNT, FRAMES, SIZE), maze.clips(2, COUNT, FRAMES, SIZE)


def noisy(videos: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0.0, deviation, videos.shape)
    return np.clip(videos + noise, 0.0, 1.0).astype(np.float32)


def shuffled(videos: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([video[:, rng.permutation(FRAMES)] for video in videos])


def test_distances_order_the_damage(extractor, real):
    like, fake = (extractor.features(half) for half in real)
    light, heavy = (frechet_distance(like, extractor.features(noisy(real[1], d))) for d in (0.1, 0.3))
    assert frechet_distance(like, fake) < light < heavy


def test_distances_see_the_order_of_frames(extractor, real):
    like, fake = (extractor.features(half) for half in real)
    assert frechet_distance(like, extractor.features(shuffled(real[1]))) > 2.0 * frechet_distance(like, fake)


def test_distances_see_that_all_videos_are_one(extractor, real):
    like, fake = (extractor.features(half) for half in real)
    one = extractor.features(real[1][:1].repeat(COUNT, axis=0))
    assert frechet_distance(like, one) > 2.0 * frechet_distance(like, fake)


def test_each_row_depends_on_its_video_only_whatever_its_length_and_size(extractor, real):
    features = extractor.features(real[0])
    assert features.dtype == np.float64 and features.shape == (COUNT, 96)
    assert np.array_equal(features[5:6], extractor.features(real[0][5:6]))
    assert extractor.features(moving_shapes.clips(3, 2, 40, 80)).shape == (2, 96)
    assert extractor.features(real[0][..., ::-1][:2]).shape == (2, 96)  # a view with steps backward


def test_training_is_a_function_of_clips_and_seed():
    clips = list(moving_shapes.clips(0, 8, 4, 16))
    losses, state = [], torch.get_rng_state()
    first = OfflineFeatures.train(clips, seed=3, steps=3, on_step=lambda step, loss: losses.append((step, loss)))
    assert [step for step, _ in losses] == [1, 2, 3]
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are touched
    torch.manual_seed(99)
    again = OfflineFeatures.train(iter(clips), seed=3, steps=3)
    assert first.identity == again.identity and first.details == again.details
    assert first.identity != OfflineFeatures.train(clips, seed=4, steps=3).identity
    assert first.identity != OfflineFeatures.train(clips[::-1], seed=3, steps=3).identity


def test_long_clips_are_learnt_from_in_windows_of_the_shape_that_is_judged():
    extractor = OfflineFeatures.train(list(moving_shapes.clips(0, 2, 34, 8)), steps=1, batch=2)
    assert extractor.features(moving_shapes.clips(1, 1, 34, 8)).shape == (1, 96)


def test_it_says_what_its_numbers_are_not(extractor):
    assert extractor.stamp == NOT_COMPARABLE == "not comparable with published FVD"


@pytest.mark.parametrize(
    ("count", "frames", "size", "got"),
    [(1, 4, 16, "1 of 4 frames"), (4, 1, 16, "4 of 1 frames"), (4, 4, 7, "4 of 4 frames of 7 x 7")],
)
def test_too_little_to_learn_from_is_refused(count, frames, size, got):
    with pytest.raises(ValueError, match=f"clips: expected at least 2 .*got {got}"):
        OfflineFeatures.train(list(moving_shapes.clips(0, count, frames, size)))

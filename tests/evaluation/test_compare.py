"""Two sets of videos against each other, and which videos are in a set."""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ssmvdm.data import moving_shapes
from ssmvdm.data.source import DataConfig, open_source
from ssmvdm.errors import InputError
from ssmvdm.evaluation import evaluate
from ssmvdm.evaluation.frames import frame_statistics, lag_differences
from ssmvdm.evaluation.frechet import frechet_distance
from ssmvdm.evaluation.sets import Samples, real_videos
from ssmvdm.sample_folder import SampleFolder, file_name


class Means:
    """A FeatureExtractor: mean colour of the first and of the last frame."""

    name, stamp, identity, details = "means", "for tests", "0" * 64, {"a": 1}

    def features(self, videos: np.ndarray) -> np.ndarray:
        means = videos.astype(np.float64).mean(axis=(3, 4))
        return np.concatenate([means[:, :, 0], means[:, :, -1]], axis=1)


REAL, FAKE = moving_shapes.clips(0, 9, 6, 16), moving_shapes.clips(1, 7, 6, 16)


def test_evaluate_is_every_measure_of_the_two_sets():
    result = evaluate(iter(REAL), iter(FAKE), Means(), batch=4)
    features = Means().features(REAL), Means().features(FAKE)
    assert result["frechet_distance"] == frechet_distance(*features)
    assert result["floor"] == frechet_distance(features[0][::2], features[0][1::2])
    assert (result["real"], result["fake"], result["shape"]) == (9, 7, [3, 6, 16, 16])
    assert (result["metric"], result["stamp"], result["features"]) == ("means", "for tests", {"a": 1})
    statistics = np.stack([frame_statistics(video) for video in FAKE])
    assert result["frame_statistics"]["sharpness"]["fake"] == statistics[..., 2].mean()
    curve = result["consistency"]
    assert curve["lag"] == [1, 2, 3, 4, 5]
    assert curve["real"] == np.mean([lag_differences(video) for video in REAL], axis=0).tolist()
    assert curve["fake_std"] == np.std([lag_differences(video) for video in FAKE], axis=0).tolist()
    json.dumps(result, allow_nan=False)


def test_a_set_against_itself_has_no_gap_and_no_distance_of_frames():
    result = evaluate(REAL, REAL[::-1], Means())
    eps = np.finfo(np.float64).eps
    assert result["consistency"]["gap"] <= len(REAL) * eps
    assert all(row["wasserstein"] == 0.0 for row in result["frame_statistics"].values())


def test_shuffled_and_frozen_videos_have_a_gap_and_equal_frames_none():
    order = np.random.default_rng(0).permutation(6)
    gaps = {}
    for name, fake in (("real", REAL), ("shuffled", REAL[:, :, order]), ("frozen", REAL[:, :, :1].repeat(6, axis=2))):
        result = evaluate(REAL, fake, Means())
        gaps[name] = result["consistency"]["gap"]
        if name == "shuffled":  # the very frames
            assert all(row["wasserstein"] == 0.0 for row in result["frame_statistics"].values())
    assert gaps["real"] == 0.0 < gaps["shuffled"] < gaps["frozen"]
    assert abs(gaps["frozen"] - 1.0) <= 5 * np.finfo(np.float64).eps  # two means over the same five lags


def test_one_frame_has_no_curve_and_still_videos_no_gap_and_few_videos_no_floor():
    result = evaluate(REAL[:3, :, :1], FAKE[:, :, :1], Means())
    assert result["consistency"] is None and result["floor"] is None
    still = REAL[:, :, :1].repeat(3, axis=2)
    assert evaluate(still, still, Means())["consistency"]["gap"] is None


def test_sets_of_different_shape_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match=r"fake: expected videos of \(3, 6, 16, 16\) .* got \(3, 5, 16, 16\)"):
        evaluate(REAL, FAKE[:, :, 1:], Means())
    with pytest.raises(ValueError, match="at least one, got none"):
        evaluate(REAL, [], Means())
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        evaluate(REAL, FAKE[:1], Means())


def test_seeds_take_different_blocks_of_computed_data_and_never_training_clips():
    source = open_source(DataConfig("shapes", 4, 8))
    blocks = [np.stack(list(real_videos(source, 3, seed))) for seed in range(2)]
    held_out = np.stack([clip.video for clip in itertools.islice(source.held_out_clips(), 6)])
    assert np.array_equal(np.concatenate(blocks), held_out)
    training = [source.training_clip(0, n).video for n in range(6)]
    assert not any(np.array_equal(a, b) for a in training for b in held_out)
    with pytest.raises(ValueError, match="computed data have no end, expected a number of videos, got all"):
        real_videos(source, None)


@pytest.fixture
def files(tmp_path) -> DataConfig:
    """Ten held-out videos of 12 frames, recognised by their brightness."""
    for split, count in (("train", 2), ("test", 10)):
        (tmp_path / split).mkdir()
        for i in range(count):
            frames = np.full((12, 8, 8, 3), 20 * i + 5, np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None]
            np.save(tmp_path / split / f"{i}.npy", frames)
    return DataConfig("folder", 4, 8, str(tmp_path))


def levels(videos) -> list[int]:
    """Which file each video is from."""
    return [(round(float(video[0, 0, 0, 0]) * 255) - 5) // 20 for video in videos]


def test_all_takes_every_held_out_video_once(files):
    source = open_source(files)
    assert levels(real_videos(source, None)) == list(range(10))
    again, other = list(real_videos(source, None)), list(real_videos(source, None, seed=1))
    assert np.array_equal(np.stack(again), np.stack(list(real_videos(source, None))))
    assert sorted(levels(other)) == list(range(10))
    begins = [sorted(float(video[0, 0, 0, 0]) for video in videos) for videos in (again, other)]
    assert begins[0] != begins[1]  # of longer videos another seed shows other frames


def test_a_number_takes_so_many_different_videos_and_a_seed_takes_others(files):
    source = open_source(files)
    taken = [levels(real_videos(source, 4, seed)) for seed in (0, 0, 1)]
    assert taken[0] == taken[1] != taken[2]
    assert all(len(set(levels)) == 4 for levels in taken)
    with pytest.raises(ValueError, match="expected 11 held-out videos, the data have 10"):
        list(real_videos(source, 11))


def test_merged_splits_are_the_real_set_of_the_paper(files):
    source = open_source(dataclasses.replace(files, merge_splits=True))
    assert sorted(levels(real_videos(source, None))) == sorted([*range(2), *range(10)])


def folder_of_samples(path: Path) -> Path:
    folder = SampleFolder.open(path, {"seed": 3, "sampler": "ddim"}, "runs/maze")
    for i in range(3):
        np.save(path / file_name(i), FAKE[i])
        folder.digests[i] = hashlib.sha256((path / file_name(i)).read_bytes()).hexdigest()
    folder.write_record()
    (path / ".sample-000003.npy.x.npy").write_bytes(b"half")  # left by a process that was killed
    return path


def test_samples_are_read_in_order_with_what_made_them(tmp_path):
    samples = Samples.open(folder_of_samples(tmp_path / "samples"))
    assert np.array_equal(np.stack(list(samples)), FAKE[:3])
    assert (len(samples), samples.frames, samples.size) == (3, 6, 16)
    assert samples.record["checkpoint"] == "runs/maze" and samples.record["made_by"]["sampler"] == "ddim"
    np.save(tmp_path / "batch.npy", FAKE)
    batch = Samples.open(tmp_path / "batch.npy")
    assert np.array_equal(np.stack(list(batch)), FAKE) and len(batch) == 7 and batch.record is None


def test_samples_that_are_not_those_of_the_record_are_refused(tmp_path):
    folder = folder_of_samples(tmp_path / "samples")
    first = folder / "sample-000000.npy"
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(InputError, match=r"sample-000000\.npy is damaged"):
        Samples.open(folder)
    first.unlink()
    with pytest.raises(InputError, match=r"1 files differ from samples.json, sample-000000.npy for one"):
        Samples.open(folder)
    (folder / "samples.json").write_text("[]")
    with pytest.raises(InputError, match="not a record of samples"):
        Samples.open(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a video in .npy"),
        (b"not an array", "is not a video in .npy"),
        (np.zeros((3, 2, 4, 5), np.float32), r"got \(3, 2, 4, 5\)"),
        (np.zeros((2, 4, 4), np.float32), r"got \(2, 4, 4\)"),
        (np.zeros((4, 2, 4, 4), np.float32), r"got \(4, 2, 4, 4\)"),
        (np.zeros((3, 5, 16, 16), np.float32), r"of one form in all files, got \(3, 5, 16, 16\)"),
        (np.array([object()]), "is not a video in .npy"),
    ],
)
def test_what_is_no_sample_is_refused_with_its_name(tmp_path, content, message):
    np.save(tmp_path / "a.npy", FAKE[0])
    path = tmp_path / "b.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError, match=f"b.npy.*{message}"):
        Samples.open(tmp_path)


def test_values_outside_of_0_and_1_are_refused_with_the_file(tmp_path):
    np.save(tmp_path / "a.npy", 2.0 * FAKE[0])
    with pytest.raises(InputError, match=r"a.npy: expected numbers in \[0, 1\]"):
        list(Samples.open(tmp_path))


def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no \.npy files"):
        Samples.open(tmp_path)
    with pytest.raises(InputError, match=r"missing\.npy is not a video"):
        Samples.open(tmp_path / "missing.npy")

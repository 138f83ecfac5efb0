"""Moving shapes, and videos to files."""

import os

import numpy as np
import pytest

from ssmvdm.data import export, moving_shapes


def test_moving_shapes_are_deterministic_and_in_range():
    clips = moving_shapes.clips(4, 2, 9, 20)
    assert clips.shape == (2, 3, 9, 20, 20)
    assert clips.dtype == np.float32
    assert clips.min() >= 0.0
    assert clips.max() <= 1.0
    assert np.array_equal(clips, moving_shapes.clips(4, 3, 9, 20)[:2])
    assert not np.array_equal(clips[:, :, 0], clips[:, :, 5])


@pytest.mark.parametrize("seed", range(20))
def test_centres_stay_inside_and_never_jump(seed):
    centres = moving_shapes._bounce(np.random.default_rng(seed), 0.15, 500)
    assert centres.shape == (2, 500)
    assert centres.min() >= 0.15 - 1e-12
    assert centres.max() <= 0.85 + 1e-12
    assert np.linalg.norm(np.diff(centres, axis=1), axis=0).max() <= moving_shapes.SPEED[1] + 1e-12


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"^frames: expected a whole number of at least 1, got 0"):
        moving_shapes.clips(0, 1, 0, 8)


def test_npy_comes_back_as_it_went(tmp_path):
    clips = moving_shapes.clips(0, 1, 3, 8)
    export.write_npy(tmp_path / "a.npy", clips)
    assert np.array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), clips)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_gif_has_every_frame_and_about_the_right_colours(tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    clips = moving_shapes.clips(0, 2, 5, 16)
    export.write_gif(tmp_path / "a.gif", clips, fps=10.0, scale=2)
    with image_module.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5
        assert gif.size == (2 * 2 * 16, 2 * 16)
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
        for index in range(5):
            gif.seek(index)
            frame = np.asarray(gif.convert("RGB")) / 255.0
            wanted = np.concatenate([clip[:, index].transpose(1, 2, 0) for clip in clips], axis=1)
            assert np.abs(frame[::2, ::2] - wanted).mean() < 0.02


def test_a_file_that_cannot_be_finished_leaves_nothing_and_keeps_the_old_one(tmp_path):
    target = tmp_path / "a.npy"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), export.replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("stop")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.npy"]

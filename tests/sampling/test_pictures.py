"""Pictures of videos, opened again: every frame where it belongs, and the line where training ended."""

import numpy as np
import pytest

from ssmvdm.data import export, moving_shapes, sheets

CLIPS = moving_shapes.clips(0, 3, 10, 16)


def pixels(path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    with image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def as_pixels(frame, scale):
    """(3, height, width) in [0, 1] -> (height, width, 3) bytes."""
    return np.kron(np.rint(frame * 255).astype(np.uint8).transpose(1, 2, 0), np.ones((scale, scale, 1), np.uint8))


def off_by_one(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1  # a half may be rounded either way


def test_a_grid_has_every_clip_in_its_place():
    grid = export.in_grid(CLIPS, columns=2, gap=3)
    assert grid.shape == (1, 3, 10, 16 * 2 + 3, 16 * 2 + 3)
    assert np.array_equal(grid[0, :, :, :16, :16], CLIPS[0])
    assert np.array_equal(grid[0, :, :, :16, 19:], CLIPS[1])
    assert np.array_equal(grid[0, :, :, 19:, :16], CLIPS[2])
    assert not grid[0, :, :, 16:19].any()
    assert not grid[0, :, :, 19:, 19:].any()
    assert np.array_equal(export.in_grid(CLIPS, 3, gap=0)[0], np.concatenate(list(CLIPS), axis=-1))


@pytest.mark.parametrize(("size", "scale"), [(16, 4), (15, 3)])
def test_mp4_has_every_frame_and_about_the_right_colours(tmp_path, size, scale):
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'ssmvdm-kernels[video]'")
    clips = moving_shapes.clips(0, 1, 10, size)
    export.write_mp4(tmp_path / "a.mp4", clips, fps=12.5, scale=scale)
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 12.5)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(frames) == 10
    even = -(-size * scale // 2) * 2
    for index, frame in enumerate(frames):
        assert frame.shape == (even, even, 3)
        wanted = as_pixels(clips[0, :, index], scale)
        error = np.abs(frame[: size * scale, : size * scale].astype(int) - wanted)
        others = [np.abs(wanted.astype(int) - as_pixels(clips[0, :, i], scale)).mean() for i in range(10) if i != index]
        assert error.mean() < min(others)  # it is this frame and no other
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_strip_shows_frames_evenly_from_first_to_last(tmp_path):
    sheets.write_strips(tmp_path / "a.png", CLIPS, columns=4, scale=2)
    sheet = pixels(tmp_path / "a.png")
    step = 32 + sheets.GAP
    assert sheet.shape == (sheets.TOP + 3 * step, 2 * sheets.LEFT + 4 * step, 3)
    for row in range(3):
        for column, frame in enumerate((0, 3, 6, 9)):
            y, x = sheets.TOP + row * step, sheets.LEFT + column * step
            assert off_by_one(sheet[y : y + 32, x : x + 32], as_pixels(CLIPS[row, :, frame], 2))


@pytest.mark.parametrize(("trained", "before"), [(4, 2), (3, 1), (9, 3)])
def test_a_strip_marks_the_first_frame_beyond_training(tmp_path, trained, before):
    """before: how many of the frames 1, 4, 7, 10 are trained ones."""
    sheets.write_strips(tmp_path / "a.png", CLIPS, columns=4, scale=2, trained=trained)
    sheet = pixels(tmp_path / "a.png")
    is_mark = (sheet[-10:] == sheets.MARK).all(axis=(0, 2))
    end_of_frame, start_of_next = (sheets.LEFT + before * (32 + sheets.GAP) - gap for gap in (sheets.GAP, 0))
    assert end_of_frame <= np.flatnonzero(is_mark).min() <= np.flatnonzero(is_mark).max() < start_of_next


def test_a_short_clip_is_shown_whole(tmp_path):
    sheets.write_strips(tmp_path / "a.png", CLIPS[:, :, :3], columns=8, scale=1)
    assert pixels(tmp_path / "a.png").shape[1] == 2 * sheets.LEFT + 3 * (16 + sheets.GAP)


def test_a_slice_is_the_middle_row_over_time(tmp_path):
    sheets.write_slices(tmp_path / "a.png", CLIPS, scale=2, trained=6)
    sheet = pixels(tmp_path / "a.png")
    wide = sheets.LEAST_WIDTH // 10
    assert sheet.shape == (2 * sheets.TOP + 3 * (32 + sheets.GAP), 2 * sheets.LEFT + sheets.LEAST_WIDTH, 3)
    for row in range(3):
        y = 2 * sheets.TOP + row * (32 + sheets.GAP)
        for frame in range(10):
            x = sheets.LEFT + frame * wide + wide // 2
            wanted = np.rint(CLIPS[row, :, frame, 8] * 255).T.repeat(2, axis=0)  # (32, 3)
            assert off_by_one(sheet[y : y + 32, x], wanted)
    marks = np.flatnonzero((sheet[-10:] == sheets.MARK).all(axis=(0, 2)))
    assert abs(marks.mean() - (sheets.LEFT + 6 * wide)) <= sheets.GAP


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        sheets.write_strips(tmp_path / "missing" / "a.png", CLIPS)
    assert list(tmp_path.iterdir()) == []

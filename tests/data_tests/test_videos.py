"""Readers: the frames that were asked for, whatever the format, and a reason for every file that is not a video."""

import io
import os
import zipfile

import numpy as np
import pytest

from ssmvdm.data.files import UnusableVideo, VideoFile, read_window
from ssmvdm.data.videos import MAX_FRAME_BYTES, open_video
from tests.data_tests import made

FRAMES, WINDOW = 40, 7
CODED = [
    ("mp4", "mpeg4", 0),
    ("mp4", "libx264", 2),
    ("mov", "libx264", 3),
    ("mkv", "libx264", 2),
    ("webm", "libvpx-vp9", 0),
    ("avi", "mpeg4", 0),
    ("avi", "mpeg4", 2),
    ("avi", "libx264", 2),
]


def read(path, start, count):
    with open_video(path) as video:
        return video.frames, np.stack(list(video.read(start, count)))


@pytest.mark.parametrize(("suffix", "codec", "reordered"), CODED)
def test_every_window_of_a_coded_video_is_what_decoding_all_of_it_shows(tmp_path, suffix, codec, reordered):
    path = tmp_path / f"a.{suffix}"
    made.write_coded(path, made.moving(FRAMES), codec, reordered)
    expected = made.decoded(path)
    assert len(expected) == FRAMES
    assert np.abs(expected.astype(int) - made.moving(FRAMES)).mean() < 20  # the codec kept the frames apart
    for start in range(FRAMES - WINDOW + 1):
        frames, shown = read(path, start, WINDOW)
        assert frames == FRAMES
        assert np.array_equal(shown, expected[start : start + WINDOW])


def test_a_late_window_is_decoded_from_a_key_frame_on(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    made.write_coded(path, made.moving(200))
    with open_video(path) as video:
        count = 0
        whole = video._decoded

        def counted(origin=None):
            nonlocal count
            for frame in whole(origin):
                count += 1
                yield frame

        monkeypatch.setattr(video, "_decoded", counted)
        list(video.read(190, 5))
    assert count <= 10 + 5  # frames from one key frame to the next, and the window


@pytest.mark.parametrize("array", ["uint8", "float32", "float64", "grey", "one channel", "channels first", "fortran"])
@pytest.mark.parametrize("packed", [False, True])
def test_arrays(tmp_path, array, packed):
    pixels = made.numbered(3, FRAMES)
    stored, expected = {
        "uint8": (pixels, pixels),
        "float32": ((pixels / 255).astype(np.float32),) * 2,
        "float64": (pixels / 255,) * 2,
        "grey": (pixels[..., 0], pixels[..., :1]),
        "one channel": (pixels[..., :1],) * 2,
        "channels first": (np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), pixels),
        "fortran": (np.asfortranarray(pixels), pixels),
    }[array]
    path = tmp_path / ("a.npz" if packed else "a.npy")
    if packed:
        np.savez_compressed(path, video=stored, actions=np.zeros(FRAMES))
    else:
        np.save(path, stored)
    if packed and array in ("channels first", "fortran"):
        with pytest.raises(ValueError, match="one after the other"):
            read(path, 0, 1)
        return
    frames, shown = read(path, 11, WINDOW)
    assert frames == FRAMES
    assert shown.dtype == expected.dtype
    assert np.array_equal(shown, expected[11 : 11 + WINDOW])


def test_gif(tmp_path):
    path = tmp_path / "a.gif"
    pixels = made.numbered(3, 30)
    made.write_gif(path, pixels)
    frames, shown = read(path, 12, WINDOW)
    assert frames == 30
    assert np.array_equal(shown, pixels[12 : 12 + WINDOW])


def test_a_gif_that_stores_only_what_changes_is_shown_whole(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.full((6, 8, 8, 3), 200, np.uint8)
    for index in range(6):
        pixels[index, index, index] = 0
    images = [image.fromarray(frame) for frame in pixels]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], optimize=True)
    assert np.array_equal(read(tmp_path / "a.gif", 3, 3)[1], pixels[3:])


def test_an_array_file_is_not_read_whole(tmp_path):
    """A file of 4 TiB, almost all of it a hole."""
    path = tmp_path / "a.npy"
    shape = (1 << 22, 512, 512, 4, 1)[:3]
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        header = file.tell()
        try:
            os.truncate(path, header + int(np.prod(shape)))
        except OSError:
            pytest.skip("the file system takes no file of this size")
    frames, shown = read(path, (1 << 22) - 2, 2)
    assert frames == 1 << 22
    assert not shown.any()


# -- what is not a video -----------------------------------------------------------------------------------------------


class Planted:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def refused(path, frames=2):
    with pytest.raises(UnusableVideo) as caught:
        read_window(VideoFile(path), np.random.default_rng(0), frames, 8, None)
    assert str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_objects_are_never_unpickled(tmp_path, suffix):
    path, trace = tmp_path / f"a.{suffix}", tmp_path / "trace"
    objects = np.array([Planted(str(trace))] * 4, dtype=object)
    if suffix == "npz":
        np.savez(path, video=objects)
    else:
        np.save(path, objects)
    assert str(trace).encode() in path.read_bytes()  # the trap is set
    refused(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["npy", "npz", "gif", "mp4", "avi", "mkv"])
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"not a video at all " * 50, b"\x93NUMPY\x01\x00\xff\xff", b"PK\x03\x04"]
)
def test_a_file_of_anything_else_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    refused(path)


def make(path, pixels):
    """A file of the format that its name says."""
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".npz":
        np.savez_compressed(path, video=pixels)
    elif path.suffix == ".gif":
        made.write_gif(path, pixels)
    else:
        made.write_coded(path, pixels)


@pytest.mark.parametrize("suffix", ["npy", "npz", "gif", "mp4", "avi"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    make(path, made.moving(20, size=16))
    whole = path.read_bytes()
    assert read(path, 0, 20)[0] == 20
    for length in np.linspace(0, len(whole) - 1, 30).astype(int):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "gif", "mp4", "avi", "mkv"])
def test_damage_is_refused_or_gives_pictures_and_nothing_else(tmp_path, suffix):
    """Most formats have no checksums: what a few changed bytes leave may still be a video, in its shape and range."""
    path = tmp_path / f"a.{suffix}"
    make(path, made.moving(20, size=32))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for trial in range(60):
        damaged = bytearray(whole)
        reach = len(whole) if trial % 2 else min(400, len(whole))  # headers, every other time
        for place in rng.integers(reach, size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            clip = read_window(VideoFile(path), np.random.default_rng(0), 8, 16, None)
        except UnusableVideo:
            refusals += 1
            continue
        assert clip.shape == (3, 8, 16, 16)
        assert 0.0 <= clip.min() <= clip.max() <= 1.0
    assert refusals


def test_a_streaming_mp4_without_its_end_is_refused(tmp_path):
    """Its table of contents is at the front: the file opens, and some of the frames are there."""
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width = stream.height = 64
        for frame in made.moving(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")
    assert read(path, 0, 40)[0] == 40
    path.write_bytes(whole[: len(whole) * 3 // 4])
    assert refused(path).startswith("is truncated")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 8, 8, 3), np.int32), "expected uint8 or floating point"),
        (np.zeros((4, 8, 8, 3), complex), "expected uint8 or floating point"),
        (np.zeros((4, 8, 8, 4), np.uint8), "expected (frames, height, width)"),
        (np.zeros((4, 8), np.uint8), "expected (frames, height, width)"),
        (np.zeros((4, 0, 8, 3), np.uint8), "frames with pixels"),
        (np.zeros((1, 8, 8, 3), np.uint8), "has 1 frames, 2 are needed"),
        (np.full((4, 8, 8, 3), 1.5), "numbers must lie in [0, 1]"),
        (np.full((4, 8, 8, 3), np.nan), "numbers must lie in [0, 1]"),
        (np.full((4, 8, 8, 3), -1e-3), "numbers must lie in [0, 1]"),
    ],
)
def test_arrays_that_are_no_video_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    assert reason in refused(tmp_path / "a.npy")


def test_a_header_that_promises_a_giant_takes_no_memory(tmp_path):
    """An archive of a few hundred bytes whose array would be terabytes."""
    edge = int(MAX_FRAME_BYTES**0.5) + 1
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9, edge, edge)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("video.npy", header.getvalue())
    assert "is not one of a video" in refused(tmp_path / "a.npz")


def test_an_archive_of_several_arrays_needs_one_called_video(tmp_path):
    np.savez(tmp_path / "a.npz", left=np.zeros((4, 8, 8)), right=np.zeros((4, 8, 8)))
    assert "left.npy, right.npy" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz")
    assert "got none" in refused(tmp_path / "b.npz")


def test_sound_without_pictures_is_refused(tmp_path):
    import av

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert refused(path) == "has no video stream"

"""Videos on disk: one reader per storage format, each reading the frames that are asked for and no others.

    .npy              memory mapped
    .npz              unpacked up to the last frame asked for; the array "video", or the only one
    .gif              Pillow, decoded up to the last frame asked for
    .mp4 .avi ...     PyAV, decoded from the key frame before the first frame asked for

Arrays are (frames, height, width, 3 or 1), (frames, height, width), or (3, frames, height, width) as `ssmvdm sample`
writes them; uint8, or floating point in [0, 1]. Nothing is ever unpickled, and the size of a frame is checked before
memory is taken for it.
"""

import itertools
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np

CODED = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
SUFFIXES = (".npy", ".npz", ".gif", *CODED)
MODULE_OF_SUFFIX = {".gif": "PIL", **dict.fromkeys(CODED, "av")}  # of the extra "video"
MAX_FRAME_BYTES = 1 << 28  # of an honest video; 8k frames in float32 fit


class Video(Protocol):
    """frames: how many there are. shape: (height, width) of each."""

    frames: int
    shape: tuple[int, int]

    def read(self, start: int, count: int) -> Iterator[np.ndarray]:
        """Frames start, start + 1, ...: each (height, width, 3 or 1), uint8 or floating point."""
        ...


@contextmanager
def open_video(path: Path, lane: int | None = None) -> Iterator[Video]:
    """The video in a file. lane: which one, of a moving MNIST array (frames, videos, height, width).

    Raises whatever the format's parser raises on a file that is not a video: callers that read foreign files take
    any Exception for an answer.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        yield ArrayVideo(np.load(path, mmap_mode="r", allow_pickle=False), lane)
    elif suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            yield PackedVideo(archive)
    elif suffix == ".gif":
        from PIL import Image

        _check_gif_end(path)
        with Image.open(path, formats=["GIF"]) as image:
            yield GifVideo(image)
    elif suffix in CODED:
        if _announced_bytes(path) > path.stat().st_size:
            raise ValueError("is truncated: it is shorter than it says")
        yield CodedVideo(path)
    else:
        raise ValueError(f"expected one of {', '.join(SUFFIXES)}, got {path.name!r}")


class ArrayVideo:
    """A whole array, in memory or mapped."""

    def __init__(self, array: np.ndarray, lane: int | None = None):
        if lane is not None:
            if array.ndim != 4 or not lane < array.shape[1]:
                raise ValueError(f"expected (frames, more than {lane} videos, height, width), got {array.shape}")
            array = array[:, lane]
        _check_type(array.dtype)
        layout = _layout(array.shape)
        self.array = array.transpose(layout.order) if layout.order else array
        self.frames, self.shape = layout.frames, layout.frame[:2]
        self.frame = layout.frame

    def read(self, start: int, count: int) -> Iterator[np.ndarray]:
        for frame in self.array[start : start + count]:
            yield np.ascontiguousarray(frame).reshape(self.frame)


class PackedVideo:
    """An array within an .npz: what comes before the first frame is unpacked and dropped."""

    def __init__(self, archive: zipfile.ZipFile):
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        chosen = [name for name in names if name == "video.npy"] or names
        if len(chosen) != 1:
            raise ValueError(f"expected one array, or one called 'video', got {', '.join(names) or 'none'}")
        self.archive, self.name = archive, chosen[0]
        with archive.open(self.name) as member:
            shape, is_fortran, self.dtype = _array_header(member)
        _check_type(self.dtype)
        layout = _layout(shape)
        if is_fortran or layout.order:
            raise ValueError("frames in an .npz must lie one after the other: (frames, height, width, channels)")
        self.frames, self.shape = layout.frames, layout.frame[:2]
        self.frame = layout.frame

    def read(self, start: int, count: int) -> Iterator[np.ndarray]:
        length = math.prod(self.frame) * self.dtype.itemsize
        with self.archive.open(self.name) as member:
            _array_header(member)
            for index in range(start + count):
                data = member.read(length)
                if len(data) != length:
                    raise ValueError(f"ends within frame {index} of {self.frames}")
                if index >= start:
                    yield np.frombuffer(data, self.dtype).reshape(self.frame)


class GifVideo:
    def __init__(self, image):
        self.image = image
        self.shape = (image.height, image.width)
        _check_frame(3 * image.height * image.width)
        self.frames = image.n_frames

    def read(self, start: int, count: int) -> Iterator[np.ndarray]:
        for index in range(start, start + count):
            self.image.seek(index)
            yield np.array(self.image.convert("RGB"))


class CodedVideo:
    """What PyAV decodes. The packets' time stamps are read first: they count the frames and find the key frames."""

    def __init__(self, path: Path):
        import av

        self.path = path
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("has no video stream")
            stream = container.streams.video[0]
            self.shape = (stream.codec_context.height, stream.codec_context.width)
            _check_frame(3 * math.prod(self.shape))
            # The last packet is empty: it asks a decoder for the frames that it still holds.
            packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
            shown = [(packet.pts, packet.is_keyframe) for packet in packets]
            # An .avi says in which order frames are decoded, and not when they are shown.
            is_reordered = container.format.name == "avi" and stream.codec_context.has_b_frames
        self.times: list[int] = sorted(time for time, _ in shown if time is not None)
        self.key_times = [time for time, is_key in shown if is_key and time is not None]
        if len(set(self.times)) == len(shown) and not is_reordered:
            self.frames = len(shown)
        else:
            self.times = []
            self.frames = sum(1 for _ in self._decoded())

    def read(self, start: int, count: int) -> Iterator[np.ndarray]:
        if not self.times:
            frames = itertools.islice(self._decoded(), start, start + count)
        else:
            frames = self._shown(self.times[start : start + count])
        shown = 0
        for frame in frames:
            if frame.is_corrupt:
                raise ValueError(f"frame {start + shown} is damaged")
            yield frame.to_ndarray(format="rgb24")
            shown += 1
        if shown != count:
            raise ValueError(f"ends after {start + shown} of its {self.frames} frames")

    def _shown(self, times: list[int]):
        """The frames shown at these times. Not every format finds the key frame; then it is decoded from the start."""
        key = max((time for time in self.key_times if time <= times[0]), default=None)
        for origin in (key, None):
            frames = itertools.dropwhile(lambda frame: frame.pts is None or frame.pts < times[0], self._decoded(origin))
            first = next(frames, None)
            if first is not None and first.pts == times[0]:
                break
        else:
            raise ValueError(f"the frame shown at {times[0]} cannot be decoded")
        yield first
        for time, frame in zip(times[1:], frames, strict=False):
            if frame.pts != time:
                raise ValueError(f"the frame shown at {time} cannot be decoded")
            yield frame

    def _decoded(self, origin: int | None = None):
        import av

        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            if origin is not None:
                container.seek(origin, stream=stream)
            yield from container.decode(stream)


class _Layout(NamedTuple):
    """How an array holds a video. order: the transposition that puts frames first, None where they are."""

    frames: int
    frame: tuple[int, int, int]  # height, width, channels
    order: tuple[int, ...] | None = None


def _layout(shape: tuple[int, ...]) -> _Layout:
    if len(shape) == 3:
        layout = _Layout(shape[0], (shape[1], shape[2], 1))
    elif len(shape) == 4 and shape[3] in (1, 3):
        layout = _Layout(shape[0], (shape[1], shape[2], shape[3]))
    elif len(shape) == 4 and shape[0] == 3:
        layout = _Layout(shape[1], (shape[2], shape[3], 3), (1, 2, 3, 0))
    else:
        forms = "(frames, height, width), (frames, height, width, 3 or 1) or (3, frames, height, width)"
        raise ValueError(f"expected {forms}, got {shape}")
    if min(layout.frame) < 1:
        raise ValueError(f"expected frames with pixels, got {shape}")
    _check_frame(math.prod(layout.frame))
    return layout


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(member)
    raise ValueError(f"is in version {version} of NumPy's format, which plain numbers do not need")


def _check_type(dtype: np.dtype) -> None:
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(f"expected uint8 or floating point numbers, got {dtype}")


def _check_frame(values: int) -> None:
    if not 0 < values <= MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {values} numbers is not one of a video")


def _check_gif_end(path: Path) -> None:
    """A GIF ends in a semicolon, which some programs pad with zeros; Pillow would take a shortened one as it is."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1024, 0))
        if not file.read().rstrip(b"\0").endswith(b";"):
            raise ValueError("is truncated: the mark of the end is missing")


def _announced_bytes(path: Path) -> int:
    """How long an .mp4 or .avi says it is, 0 for other formats: FFmpeg would take a shortened one as it is."""
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(b"RIFF"):
            return 8 + int.from_bytes(head[4:], "little")
        if head[4:] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
            return 0
        end = 0
        while len(head) == 8:  # a box is its length, its name and its content
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            if length < 8:  # 0: the last box, which ends where the file does
                break
            end += length
            file.seek(end)
            head = file.read(8)
        return end

"""Small videos in every form that data sets come in. Frames tell which one they are and of which video."""

import struct
import zlib
from pathlib import Path

import numpy as np

CRC_POLYNOMIAL = 0x82F63B78


def numbered(video: int, frames: int, height: int = 8, width: int = 8) -> np.ndarray:
    """(frames, height, width, 3) uint8: red is the frame's number, green the video's, blue a gradient."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(frames)[:, None, None] % 256
    pixels[..., 1] = video
    pixels[..., 2] = np.arange(width) * 255 // width
    return pixels


def numbers_in(clip: np.ndarray) -> tuple[int, list[int]]:
    """(video, frames) of a clip (3, frames, size, size) made of `numbered` ones."""
    red, green = (np.rint(255 * clip[channel, :, 0, 0]).astype(int) for channel in (0, 1))
    assert len(set(green)) == 1
    return int(green[0]), red.tolist()


def moving(frames: int, size: int = 64) -> np.ndarray:
    """(frames, size, size, 3) uint8 that a video codec keeps apart: a bright bar on a background that brightens."""
    pixels = np.empty((frames, size, size, 3), np.uint8)
    for index, frame in enumerate(pixels):
        frame[:] = 20 + 180 * index // frames
        frame[:, index % size] = 255
    return pixels


def write_coded(path: Path, pixels: np.ndarray, codec: str = "mpeg4", reordered: int = 0) -> None:
    """A video file; reordered: how many frames in a row may be coded from a later one."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 10
        stream.codec_context.max_b_frames = reordered
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def decoded(path: Path) -> np.ndarray:
    """Every frame of a video file, from the first to the last."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_gif(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in pixels]
    images[0].save(path, save_all=True, append_images=images[1:], duration=80)


def png(pixels: np.ndarray) -> bytes:
    """(height, width, 3) uint8 as a PNG file, by its definition."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # a row is preceded by the number of its filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    written = [struct.pack(">I", len(data)) + kind + data + _crc32(kind + data) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def _crc32(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def crc_bit_by_bit(data: bytes) -> int:
    """CRC-32C by its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CRC_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def tfrecord(records: list[bytes]) -> bytes:
    def masked(data: bytes) -> bytes:
        crc = crc_bit_by_bit(data)
        return struct.pack("<I", (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)

    lengths = (struct.pack("<Q", len(record)) for record in records)
    return b"".join(
        length + masked(length) + record + masked(record) for length, record in zip(lengths, records, strict=True)
    )


def example(**features: list[bytes] | list[int]) -> bytes:
    """A tf.train.Example: lists of byte strings or of integers by name."""

    def entry(name: str, values: list) -> bytes:
        if isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, value) for value in values))
        else:
            feature = field(3, field(1, b"".join(varint(value) for value in values)))
        return field(1, field(1, name.encode()) + field(2, feature))

    return field(1, b"".join(entry(name, values) for name, values in features.items()))


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])

"""Videos to files: animated GIF and MP4 to look at, .npy to compute with."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from ssmvdm.errors import named_when_full

HALF_WRITTEN = ".writing-"  # with which the names of folders begin whose files have no place yet
PALETTE_SAMPLES = 1 << 18  # pixels the palette is chosen from


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` if the block succeeds and disappears if it does not.

    It has the same name in a hidden folder beside, so that what a killed process leaves is no file that a pattern such
    as *.npy would find.
    """
    with named_when_full(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=HALF_WRITTEN) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.replace(path)


def remove_half_written(folder: Path) -> None:
    """What killed processes have left in a folder that no other one writes to."""
    for left_over in folder.glob(f"{HALF_WRITTEN}*"):
        shutil.rmtree(left_over)


def write_npy(path: Path, clips: np.ndarray) -> None:
    """Clips as they are, in NumPy's .npy format, without pickle.

    np.save hands the numbers to the C library and does not hear of it when these, the last bytes to be written, do not
    fit on the disk: the file would be short, and nobody told.
    """
    clips = np.ascontiguousarray(clips)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(clips))
        stream.write(clips.reshape(-1).view(np.uint8))


def as_bytes(pictures: np.ndarray, scale: int) -> np.ndarray:
    """Pictures (..., height, width, 3) in [0, 1] as uint8, their pixels enlarged `scale` times."""
    return (np.clip(pictures, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).repeat(scale, axis=-3).repeat(scale, axis=-2)


def side_by_side(clips: np.ndarray, scale: int) -> np.ndarray:
    """Clips (batch, 3, frames, height, width) in [0, 1] as one: (frames, height, batch width, 3) uint8, enlarged."""
    return as_bytes(np.concatenate(list(clips.transpose(0, 2, 3, 4, 1)), axis=2), scale)


def in_grid(clips: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Clips (batch, 3, frames, height, width) as one clip with `columns` of them in a row, black where there is none.

    Returns (1, 3, frames, rows (height + gap) - gap, columns (width + gap) - gap).
    """
    batch, channels, frames, height, width = clips.shape
    rows = -(-batch // columns)
    grid = np.zeros((1, channels, frames, rows * (height + gap) - gap, columns * (width + gap) - gap), clips.dtype)
    for index, clip in enumerate(clips):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        grid[0, :, :, y : y + height, x : x + width] = clip
    return grid


def write_gif(path: Path, clips: np.ndarray, fps: float = 12.0, scale: int = 1) -> None:
    """Clips (batch, 3, frames, height, width) in [0, 1] side by side as one endless GIF, pixels enlarged `scale` times.

    One palette of 256 colours serves all frames, so that colours do not flicker. Needs Pillow.
    """
    from PIL import Image

    frames = side_by_side(clips, scale)
    stride = -(-frames[..., 0].size // PALETTE_SAMPLES)
    sample = Image.fromarray(frames.reshape(1, -1, 3)[:, ::stride])
    palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with replacing(path) as temporary:
        # optimize and disposal stay at their plain values: frames identical to the one before are kept as frames.
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
        )


def write_mp4(path: Path, clips: np.ndarray, fps: float = 12.0, scale: int = 1) -> None:
    """Clips (batch, 3, frames, height, width) in [0, 1] side by side as H.264 that every browser plays. Needs PyAV.

    Sides of an odd number of pixels get one more, a copy of the last: the format has half as many colours as pixels.
    """
    import av

    frames = side_by_side(clips, scale)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())

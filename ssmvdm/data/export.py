"""Videos to files: animated GIF to look at, .npy to compute with."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PALETTE_SAMPLES = 1 << 18  # pixels the palette is chosen from


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name if the block succeeds and disappears if it does not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's 0600 is for secrets
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npy(path: Path, clips: np.ndarray) -> None:
    """Clips as they are, in NumPy's .npy format, without pickle."""
    with replacing(path) as temporary:
        np.save(temporary, clips, allow_pickle=False)


def write_gif(path: Path, clips: np.ndarray, fps: float = 12.0, scale: int = 1) -> None:
    """Clips (batch, 3, frames, height, width) in [0, 1] side by side as one endless GIF, pixels enlarged `scale` times.

    One palette of 256 colours serves all frames, so that colours do not flicker. Needs Pillow.
    """
    from PIL import Image

    frames = np.concatenate(list(clips.transpose(0, 2, 3, 4, 1)), axis=2)  # (frames, height, batch width, 3)
    frames = (np.clip(frames, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    stride = -(-frames[..., 0].size // PALETTE_SAMPLES)
    sample = Image.fromarray(frames.reshape(1, -1, 3)[:, ::stride])
    palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with replacing(path) as temporary:
        # optimize and disposal stay at their plain values: frames identical to the one before are kept as frames.
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
        )

"""`ssmvdm data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError

WORKING_BYTES = 80  # per pixel, while clips are rendered and encoded


@dataclass(frozen=True)
class DataOptions:
    """Write clips of a procedural data set as .gif (to look at) or .npy (to compute with)."""

    kind: Annotated[Literal["maze", "shapes"], tyro.conf.Positional]
    """maze: a first-person walk through a maze. shapes: discs and squares bouncing in a box."""

    out: Path = Path("clips.gif")
    """File to write; its ending says which format. .npy is (batch, 3, frames, size, size) float32 in [0, 1]."""

    frames: int = 64
    """Frames per clip."""

    size: int = 64
    """Height and width in pixels."""

    batch: int = 1
    """Number of clips; a GIF shows them side by side."""

    seed: int = 0
    """Which clips: the same seed gives the same clips."""

    fps: float = 12.0
    """Frames per second of the GIF."""

    scale: int = 1
    """Enlarge the GIF's pixels this many times."""


def run(options: DataOptions) -> None:
    from benchmarks.process_memory import available_bytes
    from ssmvdm.data import export, maze, moving_shapes
    from ssmvdm.data.checks import check_clip_arguments

    kind, path = options.out.suffix.lower(), options.out
    if kind not in (".gif", ".npy"):
        raise InputError(f"--out: expected a file name ending in .gif or .npy, got {str(path)!r}")
    if not 0.0 < options.fps <= 100.0:
        raise InputError(f"--fps: expected a number above 0 and at most 100, got {options.fps}")
    if options.scale < 1:
        raise InputError(f"--scale: expected a whole number of at least 1, got {options.scale}")
    if kind == ".gif":
        need("bench", "PIL")
    source = {"maze": maze, "shapes": moving_shapes}[options.kind]
    try:
        check_clip_arguments(options.seed, options.frames, options.size, options.batch)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    needed = WORKING_BYTES * options.batch * options.frames * options.size**2
    if needed > (available_bytes() or needed):
        raise InputError(f"clips of this size need {needed / 2**30:.1f} GiB of memory, which is more than is free")
    clips = source.clips(options.seed, options.batch, options.frames, options.size)
    try:
        if kind == ".gif":
            export.write_gif(path, clips, options.fps, options.scale)
        else:
            export.write_npy(path, clips)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    print(path)

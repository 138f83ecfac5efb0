"""`ssmvdm data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssmvdm.commands.frame_rate import check_fps
from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError

WORKING_BYTES = 80  # per pixel, while clips are drawn and encoded


@dataclass(frozen=True)
class DataOptions:
    """Write clips of a data set, as a network would see them, as .gif (to look at) or .npy (to compute with)."""

    name: Annotated[
        Literal["maze", "shapes", "folder", "minerl", "gqn-mazes", "carla", "ucf101", "msrvtt", "moving-mnist"],
        tyro.conf.Positional,
    ]
    """maze: a first-person walk through a maze, and shapes: discs and squares bouncing in a box, are computed. The
    others are read from --path: folder takes any .mp4, .gif, .npy and .npz, the rest the form they are known in."""

    path: Path | None = None
    """Where a data set on disk is."""

    out: Path = Path("clips.gif")
    """File to write; its ending says which format. .npy is (batch, 3, frames, size, size) float32 in [0, 1]."""

    frames: int = 64
    """Frames per clip."""

    size: int = 64
    """Height and width in pixels."""

    batch: int = 1
    """Number of clips; a GIF shows them side by side."""

    seed: int = 0
    """Which clips: those that a training run with this seed begins with."""

    held_out: bool = False
    """Show the first held-out clips instead."""

    merge_splits: bool = False
    """Training and held-out clips both from all videos, as in the paper's runs."""

    max_unusable: float = 0.1
    """Largest share of the videos that may turn out to be unusable."""

    fps: float = 12.0
    """Frames per second of the GIF."""

    scale: int = 1
    """Enlarge the GIF's pixels this many times."""


def run(options: DataOptions) -> None:
    from itertools import islice

    import numpy as np

    from ssmvdm.data import export
    from ssmvdm.data.checks import check_clip_arguments
    from ssmvdm.data.source import DataConfig, open_source
    from ssmvdm.process_memory import available_bytes

    kind, path = options.out.suffix.lower(), options.out
    if kind not in (".gif", ".npy"):
        raise InputError(f"--out: expected a file name ending in .gif or .npy, got {str(path)!r}")
    check_fps(options.fps)
    if options.scale < 1:
        raise InputError(f"--scale: expected a whole number of at least 1, got {options.scale}")
    if kind == ".gif":
        need(video=("PIL",))
    try:
        check_clip_arguments(options.seed, options.frames, options.size, options.batch)
        where = None if options.path is None else str(options.path)
        how = {"merge_splits": options.merge_splits, "max_unusable": options.max_unusable}
        config = DataConfig(options.name, options.frames, options.size, where, **how)
        source = open_source(config)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    needed = WORKING_BYTES * options.batch * options.frames * options.size**2
    if needed > (available_bytes() or needed):
        raise InputError(f"clips of this size need {needed / 2**30:.1f} GiB of memory, which is more than is free")
    training = (source.training_clip(options.seed, example) for example in range(options.batch))
    try:
        clips = list(islice(source.held_out_clips(), options.batch) if options.held_out else training)
    except ValueError as error:  # too many unusable files
        raise InputError(str(error)) from error
    if not clips:
        raise InputError(f"no video of {options.path} is held out")
    try:
        if kind == ".gif":
            export.write_gif(path, np.stack([clip.video for clip in clips]), options.fps, options.scale)
        else:
            export.write_npy(path, np.stack([clip.video for clip in clips]))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    for number, clip in enumerate(clips):
        if clip.caption is not None:
            print(f"clip {number}: {clip.caption}")
    print(path)

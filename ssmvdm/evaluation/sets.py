"""Which videos an evaluation reads: the real ones by a rule, the generated ones from a folder or a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssmvdm.data.files import FileSource
from ssmvdm.data.source import ClipSource, ProceduralSource
from ssmvdm.digests import file_digest
from ssmvdm.errors import InputError
from ssmvdm.evaluation.videos import checked_video
from ssmvdm.sample_folder import RECORD

LEAST = 2  # videos of a set that a distance can be computed of


def real_videos(source: ClipSource, count: int | None, seed: int = 0) -> Iterator[np.ndarray]:
    """Held-out videos of the source, each once: `count` of them, or all (None).

    The seed chooses, where there is a choice: which videos, and which frames of them. Of data that are computed, seed
    s takes the clips from number s * count on; files are taken in an order that s shuffles, seed 0 as they are listed
    if all are.

    ValueError for all of data that are computed and have no end, for more than there are files and, from the iterator,
    when fewer than `count`, or than two, can be used.
    """
    if isinstance(source, ProceduralSource):
        if count is None:
            raise ValueError("real set: computed data have no end, expected a number of videos, got all")
        return (source.held_out_clip(i).video for i in range(seed * count, (seed + 1) * count))
    if isinstance(source, FileSource) and count is not None and count > len(source.held_out):
        raise ValueError(f"real set: expected {count} held-out videos, the data have {len(source.held_out)}")
    if isinstance(source, FileSource) and (seed or count is not None):
        order = np.random.default_rng(seed).permutation(len(source.held_out))
        source = dataclasses.replace(source, held_out=tuple(source.held_out[i] for i in order))
    return _first(source, count)


def _first(source: ClipSource, count: int | None) -> Iterator[np.ndarray]:
    read = 0
    for clip in source.held_out_clips():
        if read == count:
            return
        yield clip.video
        read += 1
    least = LEAST if count is None else count
    if read < least:
        expected = f"at least {least}" if count is None else least
        raise ValueError(f"real set: expected {expected} held-out videos, the data have {read} that can be used")


@dataclass(frozen=True)
class Samples:
    """Videos on disk: generated ones, or what they should equal. count: in all files together. record: what
    samples.json says of them, None without one. frames, size: of each video."""

    path: Path
    files: tuple[Path, ...]
    count: int
    record: dict | None
    frames: int
    size: int

    @classmethod
    def open(cls, path: Path) -> Samples:
        """A folder that `ssmvdm sample` filled, any folder of .npy, or one .npy (n, 3, frames, size, size).

        InputError for anything else, and for a folder that is not what its samples.json says.
        """
        shown = sorted(file for file in path.glob("*.npy") if not file.name.startswith("."))
        files = tuple(shown) if path.is_dir() else (path,)
        if not files:
            raise InputError(f"{path} has no .npy files: expected samples as `ssmvdm sample` writes them")
        record = _read_record(path, files)
        shapes = [_mapped(file).shape for file in files]
        for file, shape in zip(files, shapes, strict=True):
            is_video = len(shape) in (4, 5) and shape[-4] == 3 and shape[-1] == shape[-2]
            if not is_video or shape[-3:] != shapes[0][-3:]:
                expected = "(3, frames, size, size), one video or a batch of them, of one form in all files"
                raise InputError(f"{file}: expected {expected}, got {shape}")
        count = sum(shape[0] if len(shape) == 5 else 1 for shape in shapes)
        return cls(path, files, count, record, *shapes[0][-3:-1])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every video. InputError naming the file for one that is damaged or not in [0, 1]: a set with videos left out
        would be another set."""
        for path in self.files:
            array = _mapped(path)
            for video in array if array.ndim == 5 else array[None]:
                try:
                    yield checked_video(video, str(path))
                except ValueError as error:
                    raise InputError(str(error)) from error


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a video in .npy: {error}") from error
    return array


def _read_record(path: Path, files: tuple[Path, ...]) -> dict | None:
    """What made the samples. InputError when files are missing, added, or not those that were written."""
    if not path.is_dir() or not (path / RECORD).exists():
        return None
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        digests = {name: str(entry["sha256"]) for name, entry in record["samples"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path / RECORD} is not a record of samples: {error!r}") from error
    names = {file.name for file in files}
    if names != set(digests):
        odd = sorted(names ^ set(digests))
        raise InputError(f"{path}: {len(odd)} files differ from {RECORD}, {odd[0]} for one; finish or clear the folder")
    for file in files:
        if file_digest(file) != digests[file.name]:
            raise InputError(f"{file} is damaged: its SHA-256 is not the one in {RECORD}")
    return {name: value for name, value in record.items() if name != "samples"}

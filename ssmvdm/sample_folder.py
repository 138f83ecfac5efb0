"""Samples on the disk: one .npy each, and samples.json, which says what made them and the SHA-256 of every file.

A folder that was left half done is gone on with: a file whose SHA-256 is the recorded one is kept, any other is made
again, and a folder made by anything else (other weights, another sampler or seed) is refused.
"""

import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ssmvdm.data.export import remove_half_written, replacing, write_npy
from ssmvdm.digests import file_digest
from ssmvdm.errors import InputError
from ssmvdm.samplers import Progress
from ssmvdm.sampling import batches

RECORD = "samples.json"
SCHEMA = 1
DIGEST = re.compile(r"[0-9a-f]{64}")


def file_name(index: int) -> str:
    return f"sample-{index:06d}.npy"


class Work(NamedTuple):
    """missing: indices of samples to make. batches: those to compute, some of whose samples may be there already."""

    missing: set[int]
    batches: list[range]


@dataclass
class SampleFolder:
    """made_by: everything that decides the samples' values. checkpoint: where the weights were read.

    digests: SHA-256 of each sample's file, by index.
    """

    path: Path
    made_by: dict[str, Any]
    checkpoint: str
    digests: dict[int, str]

    @classmethod
    def open(cls, path: Path, made_by: Mapping[str, Any], checkpoint: str) -> "SampleFolder":
        """A new folder, or the one that the same settings began. InputError for any other."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            text = (path / RECORD).read_text() if (path / RECORD).exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot use folder {path}: {error}") from error
        folder = cls(path, dict(made_by), checkpoint, {})
        if text is not None:
            folder.digests = _digests(path / RECORD, text, folder.made_by)
        elif any(path.glob("sample-*.npy")):
            raise InputError(f"{path} has samples but no {RECORD} that says what made them; choose another folder")
        remove_half_written(path)
        folder.write_record()
        return folder

    def work(self, count: int, batch: int) -> "Work":
        """What of the samples 0 .. count - 1 is not there as it was recorded, and the batches to compute for it.

        A batch of which any sample is missing is computed as a whole, so that an interrupted run ends with the very
        bits of an uninterrupted one.
        """
        missing = {index for index in range(count) if not self._is_intact(index)}
        return Work(missing, [indices for indices in batches(count, batch) if missing.intersection(indices)])

    def do(self, work: "Work", sample: Callable[..., np.ndarray], progress: Progress = iter) -> Iterator[int]:
        """Make what is missing; yields each index once its file is there. sample: (indices, progress) -> videos."""
        for indices in work.batches:
            for index, video in zip(indices, sample(indices, progress), strict=True):
                if index in work.missing:
                    write_npy(self.path / file_name(index), video)
                    self.digests[index] = file_digest(self.path / file_name(index))
                    self.write_record()
                    yield index

    def video(self, index: int) -> np.ndarray:
        return np.load(self.path / file_name(index), allow_pickle=False)

    def write_record(self) -> None:
        seed = self.made_by["seed"]
        record = {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint,
            "made_by": self.made_by,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "samples": {
                file_name(index): {"seed": [seed, index], "sha256": digest}
                for index, digest in sorted(self.digests.items())
            },
        }
        with replacing(self.path / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")

    def _is_intact(self, index: int) -> bool:
        path = self.path / file_name(index)
        return index in self.digests and path.is_file() and file_digest(path) == self.digests[index]


def _digests(path: Path, text: str, made_by: dict[str, Any]) -> dict[int, str]:
    """The recorded digests by index, if the same settings made the samples."""
    try:
        record = json.loads(text)
        theirs, samples = record["made_by"], record["samples"]
        if record["schema"] != SCHEMA or not isinstance(theirs, dict):
            raise ValueError
        digests = {int(name.removeprefix("sample-")[:-4]): entry["sha256"] for name, entry in samples.items()}
        if not all(map(DIGEST.fullmatch, digests.values())):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a record of samples; choose another folder") from error
    for name in sorted(set(theirs) | set(made_by)):
        if theirs.get(name) != made_by.get(name):
            raise InputError(
                f"{path.parent} has samples with {name} {theirs.get(name)!r}, not {made_by.get(name)!r}; "
                "choose another folder"
            )
    return digests

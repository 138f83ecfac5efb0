"""Where results go, and how they get there: all files of a run, or none."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssmvdm.errors import InputError, named_when_full


def prepare_folder(folder: Path) -> Path:
    """Create the folder for results and make sure that files can be written there; InputError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(f"cannot write results to {folder}: {error.strerror or error}") from error


@contextmanager
def all_or_none(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for new files: they are renamed to their places when the block is done, so that one that
    breaks leaves the earlier files whole."""
    with named_when_full(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir()):
            path.replace(folder / path.name)


def in_json(result: dict) -> str:
    """A line per row of a section and per other entry, so that a difference of two results can be read."""
    entries = []
    for name, value in result.items():
        rows = ",\n".join(f"  {json.dumps(row)}" for row in value) if isinstance(value, list) else ""
        entries.append(f" {json.dumps(name)}: " + (f"[\n{rows}\n ]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(entries) + "\n}\n"

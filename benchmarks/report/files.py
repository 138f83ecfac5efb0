"""Where results go, and how they get there: all files of a run, or none."""

import tempfile
from pathlib import Path

from ssmvdm.errors import InputError

RESULTS = Path("benchmarks/results")  # under the working directory


def prepare_folder(folder: Path) -> Path:
    """Create the folder for results and make sure that files can be written there; InputError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(f"cannot write results to {folder}: {error.strerror or error}") from error

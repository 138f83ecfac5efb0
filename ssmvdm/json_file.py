"""Files of settings and results that the user names."""

import json
from pathlib import Path

from ssmvdm.errors import InputError


def read_object(path: Path) -> dict:
    """The object in a JSON file that the user named; InputError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # undecodable bytes, no JSON, or brackets without end
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values

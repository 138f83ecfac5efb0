"""The one place that opens files written by torch.save: they are pickles, and here they may build tensors only."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch


def load_tensors(path: Path, content: bytes | None = None) -> Any:
    """What torch.save wrote, if it is tensors, numbers, text, and lists and dictionaries of them; on the CPU.

    content: of the file, where it has been read already. Whatever else a pickle can ask for, a call of any function
    among it, is refused before it happens. ValueError.
    """
    try:
        return torch.load(path if content is None else io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))  # torch's own words advise to allow it
        reason = f"it asks for {asked[1]}" if asked else "it is damaged or of another format"
        raise ValueError(f"{path} is not a file of tensors and nothing else: {reason}") from error

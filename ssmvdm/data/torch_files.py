"""The one place that opens files written by torch.save: they are pickles, and here they may build tensors only."""

import io
import pickle
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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of tensors and nothing else: {reason}") from error

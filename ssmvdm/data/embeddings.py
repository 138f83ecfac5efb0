"""Vectors of captions: a network with a condition is shown them. Any text encoder may have made them, none is here."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_embeddings(path: Path, width: int) -> dict[str, Tensor]:
    """caption -> (width,) float32, from a safetensors file of vectors named after their captions.

    ValueError naming the file, what was expected and what came.
    """
    try:
        vectors = load_file(path)
    except OSError as error:
        raise ValueError(f"embeddings: cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ValueError(f"embeddings: {path} is not a safetensors file: {error}") from error
    for caption, vector in vectors.items():
        if vector.shape != (width,) or not vector.is_floating_point():
            came = f"{tuple(vector.shape)} {vector.dtype}"
            raise ValueError(f"embeddings: {path}: expected ({width},) floating-point for {caption!r}, got {came}")
        if not vector.isfinite().all():
            raise ValueError(f"embeddings: {path}: the vector of {caption!r} is not finite")
    return {caption: vector.float() for caption, vector in vectors.items()}


def check_captions(captions: Iterable[str], vectors: Mapping[str, Tensor], path: Path) -> None:
    """ValueError unless each of the captions has its vector."""
    missing = sorted(set(captions) - vectors.keys())
    if missing:
        raise ValueError(f"embeddings: {path} has no vector for {len(missing)} captions, for example {missing[0]!r}")

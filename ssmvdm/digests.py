"""SHA-256 of what is on the disk and of what a network has learnt."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

BLOCK_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    """Of the file's bytes, as 64 digits; OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """Of names, shapes and values of all weights."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

"""A scripted module with the interface of the I3D file that FVD uses: the file itself cannot be in a repository."""

from pathlib import Path

import torch
from torch import Tensor, nn


class StandIn(nn.Module):
    """Logits (n, 5, time): a convolution over 4 frames, whose weights come from `seed`. The switches do what the real
    file's do, so that a caller who sets them wrongly gets other numbers."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(5, 3, 4, generator=generator))

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        if x.dim() != 5 or x.shape[3] != 224 or x.shape[4] != 224:
            raise RuntimeError("clips of 224 x 224 were expected")
        if rescale:
            x = x * (2.0 / 255.0) - 1.0
        logits = nn.functional.conv1d(x.square().mean(dim=(3, 4)) + x.mean(dim=(3, 4)), self.weight)
        if return_features:
            return logits
        return logits.softmax(dim=1)


def write(path: Path, seed: int = 0) -> Path:
    torch.jit.script(StandIn(seed)).save(str(path))
    return path

"""I3D, Inception-v1 with every filter inflated in time, as far as its logits: what weights without a program go into.

Carreira and Zisserman, arXiv 1705.07750; the parameters have the names that PyTorch's files of it have. Every layer is
padded as TensorFlow pads "SAME": to ceil(size / stride) outputs, the odd element behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 400  # of Kinetics-400
# Input channels, and those of the branches 1x1; 1x1, 3x3x3; 1x1, 3x3x3; pooling, 1x1.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
POOLS = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    sides: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max(0, k - (size % s or s))
        sides += (total // 2, total - total // 2)
    return F.pad(x, sides)


def pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)  # of what has passed a ReLU: zeros change nothing


class Unit(nn.Module):
    """Convolution, and where `norm` says so batch normalisation and ReLU."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, norm: bool = True):
        super().__init__()
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=not norm)
        self.bn = nn.BatchNorm3d(out, eps=1e-3) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return y if self.bn is None else F.relu(self.bn(y))


class Mixed(nn.Module):
    def __init__(self, channels: int, widths: Sequence[int]):
        super().__init__()
        self.b0 = Unit(channels, widths[0])
        self.b1a, self.b1b = Unit(channels, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(channels, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(channels, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)), dim=1)


class I3D(nn.Module):
    """(b, 3, frames, 224, 224) -> logits (b, 400, about frames / 8 - 1); at least 9 frames."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (channels, widths) in MIXED.items():
            self.add_module(name, Mixed(channels, widths))
        self.logits = Unit(1024, CLASSES, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name in MIXED:
            if name in POOLS:
                x = pool(x, *POOLS[name])
            x = self.get_submodule(name)(x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).flatten(2)


def with_weights(state: object) -> I3D:
    """The network with the weights of a file, in float32. ValueError that names what does not belong together."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("expected tensors by name")
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    with torch.device("meta"):
        network = I3D()
    wanted = network.state_dict()
    lacking = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    strange = [name for name in state if name not in wanted]
    for names, what in ((lacking, "tensors of it are missing"), (strange, "tensors are none of it")):
        if names:
            raise ValueError(f"{what}: {len(names)}, first {names[0]}")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise ValueError(f"{name} must have the shape {tuple(wanted[name].shape)}, but has {tuple(value.shape)}")
    network.load_state_dict(state, assign=True)
    return network.float().requires_grad_(False)

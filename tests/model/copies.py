"""An instrument: which operators copied a video."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CopiesOfVideo(TorchDispatchMode):
    """Records operators that do nothing but copy a tensor of at least `elements` elements."""

    COPIES = ("clone", "copy_", "_to_copy", "contiguous", "flip")

    def __init__(self, elements: int):
        super().__init__()
        self.elements, self.seen = elements, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in self.COPIES and isinstance(out, torch.Tensor) and out.numel() >= self.elements:
            self.seen.append(name)
        return out

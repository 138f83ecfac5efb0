"""The C++ kernels. Also the path of meta tensors, for which the shapes of the operators are all there is to compute."""

from __future__ import annotations

import torch

from .. import extensions
from ..operators import COMPILED
from .base import KernelBackend


class CpuBackend(KernelBackend):
    name = "cpu"
    operators = COMPILED

    def missing(self) -> str | None:
        problem = extensions.problems["_C"]
        return None if problem is None else f"{problem} {extensions.REMEDY}."

    def obstacles(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        if device.type == "meta":
            return []
        reasons = []
        if device.type != "cpu":
            reasons.append(f"It computes on CPU tensors, and these are on {device}.")
        missing = self.missing()
        if missing is not None:
            reasons.append(missing)
        return reasons

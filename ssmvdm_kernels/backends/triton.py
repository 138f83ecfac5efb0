"""The Triton kernels: GPUs of NVIDIA and AMD, and CPU tensors where Triton interprets its programs.

Nothing here imports Triton; the kernels do, at the first call.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable

import torch

from .. import extensions
from ..operators import Operators
from .base import KernelBackend

NAMESPACE = f"{extensions.namespace.name}_triton"
OLDEST = (3, 6)  # in which kernels take tuples of tensors and of constants
_KERNELS = {  # operator: module
    "scan_forward": "scan_forward",
    "scan_backward": "scan_backward",
    "conv1d_forward": "conv",
    "conv1d_backward": "conv",
    "s4d_forward": "s4d",
    "s4d_backward": "s4d",
}


def _problem() -> str | None:
    """Why the kernels cannot be compiled or interpreted here."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed. Install it with: pip install triton."
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"It needs Triton {'.'.join(map(str, OLDEST))} or later, and {version} is installed."
    return None


PROBLEM = _problem()
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


class TritonBackend(KernelBackend):
    name = "triton"
    operators = Operators(NAMESPACE)

    def missing(self) -> str | None:
        if PROBLEM is None and not IS_INTERPRETED and not torch.cuda.is_available():
            return "PyTorch finds no CUDA or ROCm device, and TRITON_INTERPRET=1 is not set."
        return PROBLEM

    def obstacles(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        reasons = []
        if device.type == "cpu" and not IS_INTERPRETED:
            reasons.append("It takes CPU tensors only in Triton's interpreter, and TRITON_INTERPRET=1 is not set.")
        elif device.type == "cuda" and IS_INTERPRETED:
            reasons.append("TRITON_INTERPRET=1 is set, which is for CPU tensors.")
        elif device.type not in ("cpu", "cuda"):
            reasons.append(f"It computes on CUDA and ROCm tensors, and these are on {device}.")
        if dtype == torch.float64:
            reasons.append("It computes float32, bfloat16 and float16 tensors, and these are float64.")
        if PROBLEM is not None:
            reasons.append(PROBLEM)
        return reasons

    def is_automatic(self, device: torch.device) -> bool:
        return device.type != "cpu"  # the interpreter is for tests


def _at_first_call(name: str) -> Callable:
    def run(*arguments):
        kernels = importlib.import_module(f"..triton_kernels.{_KERNELS[name]}", __package__)
        return getattr(kernels, name)(*arguments)

    return run


_implementations = [torch.library.Library(NAMESPACE, "IMPL", device) for device in ("CPU", "CUDA")]
for _library in _implementations:
    for _name in _KERNELS:
        _library.impl(_name, _at_first_call(_name))

"""The CUDA kernels of the compiled library."""

from __future__ import annotations

import functools
import json
import re

import torch

from .. import extensions
from ..operators import COMPILED
from .base import KernelBackend


class CudaBackend(KernelBackend):
    name = "cuda"
    operators = COMPILED

    def missing(self) -> str | None:
        if extensions.problems["_C_cuda"] is not None:
            return _not_loaded()
        # Asked for each device: one that the library has code for is enough.
        problems = [device_problem(index) for index in range(torch.cuda.device_count())]
        return None if None in problems else (problems or [device_problem(0)])[0]

    def obstacles(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        reasons = []
        if device.type != "cuda":
            reasons.append(f"It computes on CUDA tensors, and these are on {device}.")
        if dtype == torch.float64:
            reasons.append("It computes float32, bfloat16 and float16 tensors, and these are float64.")
        if extensions.problems["_C_cuda"] is not None:
            reasons.append(_not_loaded())
        elif device.type == "cuda":
            problem = device_problem(device.index)
            if problem is not None:
                reasons.append(problem)
        return reasons


def _not_loaded() -> str:
    problem = extensions.problems["_C_cuda"]
    return f"{problem} {extensions.REMEDY}, where nvcc and a PyTorch for CUDA are installed."


def device_problem(index: int) -> str | None:
    """Why the library, loaded, runs nothing on a CUDA device, or None if it runs."""
    return _device_problem(index)


# The answer does not change while the process lives. See `_announce_fallback` in this package for the mark.
device_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _device_problem(index: int) -> str | None:
    if torch.version.cuda is None:
        return "This PyTorch is built without CUDA."
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device."
    capability = torch.cuda.get_device_capability(index)
    entries = built_architectures()
    if any(covers(entry, capability) for entry in entries):
        return None
    name, needed = torch.cuda.get_device_name(index), ".".join(map(str, capability))
    return (
        f"The extension _C_cuda was compiled for {', '.join(entries)}, and {name} has compute capability {needed}. "
        f"{extensions.REMEDY}, with TORCH_CUDA_ARCH_LIST={needed}."
    )


def built_architectures() -> list[str]:
    """What the loaded library has code for, as TORCH_CUDA_ARCH_LIST spells it: "8.0", "9.0+PTX"."""
    return json.loads(extensions.namespace.cuda_build_info())["architectures"].split(":")


def covers(entry: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for an entry of TORCH_CUDA_ARCH_LIST runs on a device.

    Binary code runs on devices of its major version from its minor version on. PTX is translated for any later device.
    An "a" binds code to exactly one capability, an "f" to its major version.

    Source: CUDA C++ programming guide, "Binary compatibility", "PTX compatibility" and "Feature set compiler targets".
    """
    major, minor, bound, ptx = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry).groups()
    own = int(major), int(minor)
    if bound == "a":
        return capability == own
    if capability[0] == own[0]:
        return capability[1] >= own[1]
    return ptx is not None and bound == "" and capability > own

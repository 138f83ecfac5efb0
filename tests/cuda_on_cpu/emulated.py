"""The operators of the CUDA library on CPU tensors: its own binding over kernels compiled for the emulator, and a
backend that takes the place of "cuda".
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import cpp_extension

from ssmvdm_kernels import backends
from ssmvdm_kernels.backends.base import KernelBackend
from ssmvdm_kernels.operators import Operators

from . import build
from .calls import Machine

ORDERS = ("forward", "reverse", "random")
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY", "-DSSMVDM_ARCHITECTURES=none"]


@functools.cache
def library() -> ctypes.CDLL:
    """Compiled where something has changed, and loaded."""
    kernels = build.library("fast", build.kernel_sources(), "kernels")
    common = [*build.COMMON, *build.WARNINGS, *build.includes(), "-O1", "-fvisibility=hidden"]
    torch_includes = [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
    jobs = [
        (build.CSRC / "cuda" / "binding.cpp", [*common, *DEFINES, *torch_includes]),
        (build.HERE / "emulated_settings.cpp", common),
    ]
    link = ["-Wl,-rpath,$ORIGIN", "-L", str(kernels.parent), f"-l:{kernels.name}"]
    link += [flag for folder in cpp_extension.library_paths() for flag in ("-L", folder)]
    return ctypes.CDLL(str(build.linked("fast", "operators.so", jobs, [*link, "-ltorch_cpu", "-lc10"])))


@functools.cache
def operators() -> Operators:
    library()
    return Operators("ssmvdm_emulated")


def configure(machine: Machine) -> None:
    """From now on kernels run on this machine. The binding asks a device for its limits once."""
    order = ORDERS.index(machine.order)
    library().ssmvdm_configure(machine.multiprocessors, machine.shared_bytes, order, machine.seed, machine.exact)


def launches() -> int:
    """How many kernels have run."""
    return library().ssmvdm_launches()


class EmulatedBackend(KernelBackend):
    """The CUDA backend for CPU tensors; what it cannot take is what the real one cannot."""

    name = "cuda"

    def __init__(self) -> None:
        self.operators = operators()

    def missing(self) -> str | None:
        return None

    def obstacles(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return [] if device.type == "cpu" and dtype != torch.float64 else ["It is emulated, for float32 CPU tensors."]


@contextmanager
def as_cuda() -> Iterator[Operators]:
    """In this scope "cuda" is the emulated backend, and "auto" prefers it for CPU tensors too."""
    backend, real = EmulatedBackend(), backends.REGISTRY["cuda"]
    backends.REGISTRY["cuda"] = backend
    try:
        yield backend.operators
    finally:
        backends.REGISTRY["cuda"] = real

"""The compiled libraries in this package. Loading one registers its kernels for the operators in `namespace`.

An installed package has a library for the CPU and one for CUDA, and the operators are `ssmvdm::*`. In a build for the
kernels hub one library has all, loaded by the module `_ops` that the builder adds, and its namespace is its own.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

REMEDY = "Build it with: pip install --no-build-isolation <source of ssmvdm-kernels>"


def files(name: str) -> list[Path]:
    """Where the library `name` lies: one path, or none if it was not built."""
    return sorted(p for p in Path(__file__).parent.glob(f"{name}.*") if p.suffix in (".so", ".pyd", ".dylib"))


def load(name: str) -> str | None:
    """Load the library `name`. Returns None, or a sentence saying why that failed."""
    found = files(name)
    if not found:
        return f"This installation has no compiled {name} extension."
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"The extension {found[0].name} cannot be loaded by torch {torch.__version__}: {error}."
    return None


# `problems`: why a library is not loaded, or None, each on its own: a CUDA failure leaves the CPU kernels alone.
if (Path(__file__).parent / "_ops.py").exists():
    namespace = importlib.import_module("._ops", __package__).ops
    _has_cuda = hasattr(namespace, "cuda_build_info")
    problems = {"_C": None, "_C_cuda": None if _has_cuda else "This build for the kernels hub is one for the CPU."}
else:
    namespace = torch.ops.ssmvdm
    problems = {name: load(name) for name in ("_C", "_C_cuda")}

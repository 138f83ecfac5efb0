"""Every instruction set that this machine can run, chosen by SSMVDM_CPU_ISA, each in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ISAS = {"avx512": ("AVX512",), "avx2": ("AVX512", "AVX2"), "baseline": ("AVX512", "AVX2", "DEFAULT", "NO AVX")}
ROOT = Path(__file__).resolve().parents[2]


def require_isa(isa: str) -> None:
    """Skip where the processor does not have it; the baseline runs everywhere."""
    if isa == "baseline":
        return
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"{isa} is an instruction set of x86-64, this is {platform.machine()}")
    if torch.backends.cpu.get_cpu_capability() not in ISAS[isa]:
        pytest.skip(f"this processor has no {isa}: torch reports {torch.backends.cpu.get_cpu_capability()}")


def in_process(isa: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python with this instruction set asked for."""
    environment = os.environ | {"SSMVDM_CPU_ISA": isa}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(params=ISAS)
def isa(request) -> str:
    from ..conftest import require_backend

    require_backend("cpu")
    require_isa(request.param)
    return request.param


def test_the_environment_chooses_the_kernels(isa):
    found = in_process(isa, "-c", "import torch, ssmvdm_kernels; print(torch.ops.ssmvdm.cpu_capability())")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip().lower() == isa


def test_accuracy_and_determinism(isa):
    """Core accuracy, whole numbers, many sequences, the exponential, strong decay, written memory, and threads."""
    chosen = (
        "cpu and (test_core or whole_numbers or many_sequences or exponential_itself or dA_per_state or written"
        " or number_of_threads)"
    )
    names = ("accuracy", "exact", "numerics", "gradients", "memory_safety", "determinism")
    files = [f"tests/kernels/test_{name}.py" for name in names]
    found = in_process(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files)
    assert found.returncode == 0, f"SSMVDM_CPU_ISA={isa}\n{found.stdout[-4000:]}{found.stderr[-1000:]}"
    assert " passed" in found.stdout


def test_an_unknown_name_is_an_error_or_the_baseline(isa):
    """Never a crash, and never an instruction set that was not asked for."""
    found = in_process("no-such-isa", "-c", "import torch, ssmvdm_kernels; print(torch.ops.ssmvdm.cpu_capability())")
    assert found.returncode == 1 or found.stdout.strip().lower() == "baseline", found.stdout + found.stderr

"""Compiles the CUDA kernels for devices, without one: cubins and what ptxas says of them."""

from __future__ import annotations

import hashlib
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import build

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-O3", "-std=c++20", "-cubin", "-Xptxas", "-v")  # as setup.py compiles them, but into one cubin per file


@dataclass(frozen=True)
class Compiled:
    """One .cu file for one architecture."""

    source: Path
    architecture: str
    cubin: Path
    log: str  # of ptxas


def with_headers(sources: list[Path]) -> list[Path]:
    """Sources and everything of the package that they include."""
    found, waiting = set(), list(sources)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [build.CSRC / name for name in re.findall(r'^#include "(.*)"', path.read_text(), re.MULTILINE)
                        if (build.CSRC / name).exists()]  # fmt: skip
    return sorted(found)


def fingerprint(sources: list[Path]) -> str:
    """Of what the compiler reads for them: neither comments nor white space."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in with_headers(sources):
        code = re.sub(r"//[^\n]*", "", path.read_text())
        digest.update(f"{path.name}\n{' '.join(code.split())}\n".encode())
    return digest.hexdigest()[:16]


def nvcc_version() -> str:
    output = subprocess.run([build.find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", output)[1]


def compiled(source: Path, architecture: str) -> Compiled:
    """Compile, unless the same code was compiled before."""
    folder = build.BUILD / architecture
    stem = f"{source.stem}-{fingerprint([source])}"
    cubin, log = folder / f"{stem}.cubin", folder / f"{stem}.log"
    if not (cubin.exists() and log.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{stem}.partial"
        command = [build.find_nvcc(), *FLAGS, f"-arch={architecture}", "-I", str(build.CSRC), str(source)]
        result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
        if not cubin.name.startswith(f"{source.stem}-{fingerprint([source])}"):
            raise RuntimeError(f"{source.name} or a header was changed while it was being compiled")
        log.write_text(result.stderr)
        partial.rename(cubin)
    return Compiled(source, architecture, cubin, log.read_text())


def all_compiled(architectures: tuple[str, ...] = ARCHITECTURES, kernel: str = "") -> list[Compiled]:
    """Every file for every architecture, two at a time."""
    jobs = [(source, architecture) for architecture in architectures for source in build.kernel_sources(kernel)]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: compiled(*job), jobs))


def readable(mangled: list[str]) -> list[str]:
    """Kernels' names as they are written, without namespaces and parameters."""
    output = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    names = []
    for name in output.splitlines():
        name = re.sub(r"ssmvdm::cuda::|\(anonymous namespace\)::|_GLOBAL__N__\w+::|^void ", "", name)
        name = name.replace("__nv_bfloat16", "bfloat16").replace("__half", "float16")
        names.append(re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name))
    return names

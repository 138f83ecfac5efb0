"""Environment report: what is installed, what was compiled, and why each backend does or does not run here.

    python -m ssmvdm_kernels.info [--json]

Made to be pasted into a bug report: it names files relative to the package and holds no path of this machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path

import torch

from . import __version__, backends, extensions

_PACKAGES = ("torch", "triton", "numpy", "einops", "safetensors")
_VARIABLES = ("SSMVDM_STRICT", "SSMVDM_CPU_ISA", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?[\\/](?:[^\\/\s:'\"]+[\\/])+")


def report() -> dict:
    """The report as plain values that JSON can hold. Where something is missing the value is None and a sibling
    `problem` says why in a sentence."""
    libraries = {name: _extension(name) for name in extensions.problems}
    return {
        "versions": _versions(),
        "extensions": libraries,
        "cpu": _cpu(has_kernels=libraries["_C"]["problem"] is None),
        "cuda": _cuda(has_kernels=libraries["_C_cuda"]["problem"] is None),
        "backends": {name: {"is_available": missing(name) is None, "reason": missing(name)} for name in backends.NAMES},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"ssmvdm_kernels": __version__}
    versions["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    versions["torch"] = str(torch.__version__)  # the one imported, with its build suffix
    versions["platform"] = platform.platform()
    return versions


def _extension(name: str) -> dict[str, str | None]:
    problem, files = extensions.problems[name], extensions.files(name)
    return {
        "file": f"{files[0].parent.name}/{files[0].name}" if files else None,
        "problem": None if problem is None else _FOLDERS.sub("", problem),
    }


def _cpu(has_kernels: bool) -> dict[str, str | int | None]:
    return {
        "model": _cpu_model(),
        "active_isa": extensions.namespace.cpu_capability() if has_kernels else None,
        "logical_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^(?:model name|Processor)\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _cuda(has_kernels: bool) -> dict:
    built = json.loads(extensions.namespace.cuda_build_info()) if has_kernels else None
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    return {
        "torch_was_built_with": torch.version.cuda,
        "kernels_were_built_with": _toolkit(built["toolkit"]) if built else None,
        "architectures": built["architectures"].split(":") if built else None,
        "devices": devices,
    }


def _toolkit(version: int) -> str:
    return f"{version // 1000}.{version // 10 % 100}"


def missing(name: str) -> str | None:
    """`backends.missing` without the folders of this machine."""
    reason = backends.missing(name)
    return None if reason is None else _FOLDERS.sub("", reason)


def _as_text(found: dict) -> str:
    """The report for people: one aligned block per section."""
    cpu, cuda = found["cpu"], found["cuda"]
    libraries = {
        name: entry["file"] if entry["problem"] is None else f"not loaded. {entry['problem']}"
        for name, entry in found["extensions"].items()
    }
    sections = {
        "versions": found["versions"],
        "extensions": libraries,
        "cpu": {**cpu, "active_isa": cpu["active_isa"] or "none, the kernels are not loaded"},
        "cuda": {
            "torch_was_built_with": cuda["torch_was_built_with"] or "no CUDA",
            "kernels_were_built_with": cuda["kernels_were_built_with"] or "not built",
            "architectures": " ".join(cuda["architectures"] or ["none"]),
            "devices": "; ".join(f"{d['name']} ({d['capability']}, {d['memory_gib']} GiB)" for d in cuda["devices"])
            or "none",
        },
        "backends": {name: entry["reason"] or "available" for name, entry in found["backends"].items()},
        "environment": found["environment"] or {"": "none of " + ", ".join(_VARIABLES) + " is set"},
    }
    width = max(len(key) for section in sections.values() for key in section)
    lines = []
    for title, section in sections.items():
        lines.append(title)
        lines += [f"  {key:<{width}}  {'-' if value is None else value}".rstrip() for key, value in section.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ssmvdm_kernels.info", description="Environment report.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    as_json = parser.parse_args(arguments).json
    found = report()
    try:
        print(json.dumps(found, indent=2) if as_json else _as_text(found), flush=True)
    except BrokenPipeError:  # the reader has gone: python -m ssmvdm_kernels.info | head -1
        sys.stdout = None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

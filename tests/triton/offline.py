"""Triton kernels compiled for GPUs that are not there, through the launch code of the product.

A driver that stands in for a GPU takes the kernels to be launched and keeps them; nothing runs.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class StandIn:
    """What Triton asks of a driver, answered for a device of one architecture."""

    def __init__(self, target: GPUTarget):
        self.target = target
        self.launched: list = []  # compiled kernels, in the order of their launch
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {
                "max_shared_mem": 64 * 1024,
                "multiprocessor_count": 132,
                "warpSize": target.warp_size,
            },
            load_binary=lambda *arguments: (None, 0, 0, 0, 1024),
        )

    def launcher_cls(self, source, metadata):
        return lambda *arguments: None

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_capability(self, device=0):
        return divmod(self.target.arch, 10) if self.target.backend == "cuda" else (9, 0)

    def get_device_interface(self):
        return torch.cuda

    def map_python_to_cpp_type(self, kind):
        return kind

    def get_empty_cache_for_benchmark(self):
        raise NotImplementedError("nothing is measured here")


@contextlib.contextmanager
def compiling_for(name: str, kernels):
    """Launches inside compile for this architecture; yields the list of what was launched."""
    stand_in = StandIn(TARGETS[name])
    before = driver._active  # asking for the active one fails where there is none
    driver.set_active(stand_in)
    launched: list = []
    originals = {}
    for kernel in kernels:
        kernel.device_caches.clear()
        originals[kernel] = kernel.run

        def recording(*arguments, _run=kernel.run, **named):
            launched.append(_run(*arguments, **named))
            return launched[-1]

        kernel.run = recording
    try:
        yield launched
    finally:
        for kernel, run in originals.items():
            kernel.run = run
            kernel.device_caches.clear()
        driver._active = before


def tool(name: str, file: str, *options: str) -> str:
    """Output of one of the CUDA tools that come with Triton."""
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    return subprocess.run([folder / name, *options, file], capture_output=True, text=True, check=True).stdout


def resources(kernel) -> dict[str, int]:
    """Registers, bytes of spilled registers and of shared memory."""
    if "amdgcn" in kernel.asm:
        found = {key: int(re.search(rf"\.{key}:\s*(\d+)", kernel.asm["amdgcn"])[1])
                 for key in ("vgpr_count", "private_segment_fixed_size", "group_segment_fixed_size")}  # fmt: skip
        return dict(zip(("registers", "spilled", "shared"), found.values(), strict=True))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = tool("cuobjdump", file.name, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    registers, stack, shared, local = map(int, found.groups())
    return {"registers": registers, "spilled": stack + local, "shared": shared}


def sass(kernel) -> list[str]:
    """The instructions of an NVIDIA kernel, labels among them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return tool("nvdisasm", file.name, "-c").splitlines()


def loops(kernel) -> list[tuple[int, int, list[str]]]:
    """(first, last, instructions) of every loop, by its backward branch; addresses count instructions."""
    labels, instructions, found = {}, [], []
    for line in sass(kernel):
        label = re.match(r"\s*\.(L_\w+):", line)
        if label:
            labels[label[1]] = len(instructions)
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.+?);", line)
        if instruction:
            instructions.append(instruction[1])
            branch = re.search(r"\bBRA\b.*`\(\.(L_\w+)\)", instruction[1])
            if branch and labels.get(branch[1], len(instructions)) < len(instructions) - 1:
                found.append((labels[branch[1]], len(instructions), instructions[labels[branch[1]] :]))
    return found

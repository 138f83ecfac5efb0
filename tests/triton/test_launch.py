"""What the interpreter cannot show of kernels: the device that they are launched on, and that they have no atomics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "ssmvdm_kernels" / "triton_kernels"
PROGRAM = """
import contextlib, json
import torch
from ssmvdm_kernels.triton_kernels import launch
from ssmvdm_kernels.triton_kernels.layout import Sizes

events = []

@contextlib.contextmanager
def device(wanted):
    events.append(f"on {wanted}")
    yield
    events.append(f"off {wanted}")

class Kernel:
    def __getitem__(self, grid):
        return lambda *arguments, **options: events.append(f"launch {grid}")

torch.cuda.device = device
for name in ("cuda:1", "cpu"):
    launch.run(Kernel(), 3, torch.device(name), launch.Tiling(1, 1), sizes=Sizes(*[1] * len(Sizes._fields)))
print(json.dumps(events))
"""


def test_a_kernel_is_launched_on_the_device_of_its_tensors():
    """In a process of its own: importing the kernels here would decide how Triton runs for all tests after."""
    found = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == ["on cuda:1", "launch (3,)", "off cuda:1", "launch (3,)"]


def test_no_kernel_has_atomics():
    """They would add in an order that nobody decides; Triton's own functions that the kernels call have none."""
    sources = sorted(KERNELS.glob("*.py"))
    assert sources
    for path in sources:
        assert not re.search(r"\batomic_\w+\(", path.read_text(encoding="utf-8")), path.name

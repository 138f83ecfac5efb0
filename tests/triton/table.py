"""What each kernel takes on each architecture, and the instructions of its time loops.

    python -m tests.triton.table       compiles everything and writes resources.json

Per version of Triton, architecture, kernel and layout: registers per thread, bytes of spilled registers, bytes of
shared memory, and on NVIDIA the issue slots per 32 elements of all directions: the instructions of the innermost loops
over time, NOP aside, each divided by the steps it takes at a time and by the elements of a tile in units of a warp.
"""

from __future__ import annotations

import json
from pathlib import Path

import triton

from ssmvdm_kernels.triton_kernels import scan_backward, scan_forward

from .kernels import CALLS, KERNELS, LAYOUTS
from .offline import TARGETS, compiling_for, loops, resources

FILE = Path(__file__).parent / "resources.json"
SMALLEST_LOOP = 100  # instructions; a shorter one is no walk over time
TILINGS = {"scan forward": scan_forward.TILINGS, "scan backward": scan_backward.TILINGS}


def measured(architecture: str, call: str, layout: str) -> dict:
    """The kernels of one call: the largest of their demands, and the sum of their slots."""
    with compiling_for(architecture, KERNELS) as launched:
        CALLS[call](layout)
    kernels = {kernel.hash: kernel for kernel in launched}.values()  # launches for other states are the same kernel
    demands = [resources(kernel) for kernel in kernels]
    found = {name: max(demand[name] for demand in demands) for name in demands[0]}
    if architecture.startswith("sm_") and call in TILINGS:
        found["slots"] = round(sum(slots(kernel, call, layout) for kernel in kernels))
    return found


def slots(kernel, call: str, layout: str) -> float:
    """Issue slots of one kernel per 32 elements."""
    found = [(first, last, sum(not i.startswith("NOP") for i in body)) for first, last, body in loops(kernel)]
    found = [loop for loop in found if loop[2] >= SMALLEST_LOOP]
    inner = [
        count
        for first, last, count in found
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b, _ in found)
    ]
    tile = getattr(TILINGS[call], layout)
    if call == "scan backward":  # the walk, step by step, and the adjoint, whose steps between checkpoints are unrolled
        inner = [min(inner), max(inner) / scan_backward.STEPS]
    return sum(inner) * 32 * tile.warps / (tile.block_d * tile.block_s)


def key_of(call: str, layout: str) -> str:
    return f"{call}, {layout}"


if __name__ == "__main__":
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    for architecture in TARGETS:
        entries = {key_of(call, layout): measured(architecture, call, layout) for call in CALLS for layout in LAYOUTS}
        table.setdefault(triton.__version__, {})[architecture] = entries
        FILE.write_text(json.dumps(table, indent=1) + "\n")

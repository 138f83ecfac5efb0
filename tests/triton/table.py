"""What each kernel takes on each architecture, and the instructions of its time loops beside those of the CUDA kernels.

    python -m tests.triton.table       compiles everything and writes resources.json and resources.md

Per version of Triton, architecture, kernel and layout: registers per thread, bytes of spilled registers, bytes of
shared memory, and on NVIDIA the issue slots per 32 elements of all directions: the instructions of the innermost loops
over time, NOP aside, each divided by the steps it takes at a time and by the elements of a tile in units of a warp.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import triton

from ssmvdm_kernels.triton_kernels import scan_backward, scan_forward
from tests.cuda_on_cpu import sass

from .kernels import CALLS, KERNELS, LAYOUTS
from .offline import TARGETS, compiling_for, loops, resources

FILE = Path(__file__).parent / "resources.json"
REPORT = FILE.with_suffix(".md")
SMALLEST_LOOP = 100  # instructions; a shorter one is no walk over time
TILINGS = {"scan forward": scan_forward.TILINGS, "scan backward": scan_backward.TILINGS}
CUDA = {"scan forward": "scan_forward_kernel", "scan backward": "scan_backward_kernel"}
CUDA_THREADS = {"channels": "ChannelThreads", "lanes": "LaneThreads", "length": "ChannelThreads"}
TIMES_CUDA = {"scan forward": 1.35, "scan backward": 1.6}  # the slots of the CUDA kernel: so many may be taken here
MORE = {  # slots that are allowed beyond that: addresses of B and C are computed anew, in uniform registers
    ("sm_120", "scan forward", "length"): 450
}
HEAD = """# What the Triton kernels take

Compiled ahead of time by Triton {version} through the launch code; made by `make triton-resources`. Nothing here
was measured.

## Registers of a thread / bytes that it spills / bytes of shared memory of a program

| kernel | {architectures} |
|---|{columns}|
"""
SLOTS_HEAD = """
## Issue slots of the scan's time loops per 32 elements, both directions

The CUDA kernels' are those of sm_90 in [sass.md](../../csrc/cuda/sass.md), with every option on, as here. On
sm_90 at most {forward} times as many are allowed forward, {backward} times backward; on the others of NVIDIA, as many
times what the CUDA kernel aims at, but for 450 of sm_120 where the length is the inner axis.

| kernel | {architectures} | CUDA | sm_90 / CUDA |
|---|{columns}|---|---|
"""


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
    tile = TILINGS[call].lanes if layout == "lanes" else TILINGS[call].channels
    if call == "scan backward":  # the walk, step by step, and the adjoint, whose steps between checkpoints are unrolled
        inner = [min(inner), max(inner) / scan_backward.STEPS]
    elif layout == "length":
        inner = [count / scan_forward.STEPS for count in inner]
    return sum(inner) * 32 * tile.warps / (tile.block_d * tile.block_s)


def key_of(call: str, layout: str) -> str:
    return f"{call}, {layout}"


def goal(call: str, layout: str) -> int:
    """Issue slots that the CUDA kernel aims at."""
    return sass.GOALS[CUDA[call], CUDA_THREADS[layout]]


def cuda_slots(call: str, layout: str) -> int:
    """Issue slots of the CUDA kernel for whole tiles of any length, by its committed report."""
    along_time = str(layout == "length").lower()
    pattern = rf"\| `{CUDA[call]}<bfloat16, {CUDA_THREADS[layout]}<[\w, ]+>, true, {along_time}>` \| (\d+) \|"
    return int(re.search(pattern, sass.REPORT.read_text())[1])


def report(version: str, table: dict[str, dict[str, dict]]) -> str:
    """resources.md of one version's architectures."""
    names, columns = " | ".join(table), "|".join("---" for _ in table)
    text = HEAD.format(version=version, architectures=names, columns=columns)
    keys = {key_of(call, layout): (call, layout) for call in CALLS for layout in LAYOUTS}
    demands = ("registers", "spilled", "shared")
    for key in keys:
        cells = (" / ".join(str(entries[key][name]) for name in demands) for entries in table.values())
        text += f"| {key} | {' | '.join(cells)} |\n"
    counted = [name for name in table if name.startswith("sm_")]
    times = {call.split()[1]: value for call, value in TIMES_CUDA.items()}
    columns = "|".join("---" for _ in counted)
    text += SLOTS_HEAD.format(architectures=" | ".join(counted), columns=columns, **times)
    for key, (call, layout) in keys.items():
        if call in TILINGS:
            of_cuda = cuda_slots(call, layout)
            cells = [str(table[name][key]["slots"]) for name in counted]
            cells += [str(of_cuda), f"{table['sm_90'][key]['slots'] / of_cuda:.2f}"]
            text += f"| {key} | {' | '.join(cells)} |\n"
    return text


def main() -> None:
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    for architecture in TARGETS:
        entries = {key_of(call, layout): measured(architecture, call, layout) for call in CALLS for layout in LAYOUTS}
        table.setdefault(triton.__version__, {})[architecture] = entries
    FILE.write_text(json.dumps(table, indent=1) + "\n")
    REPORT.write_text(report(triton.__version__, table[triton.__version__]))


if __name__ == "__main__":
    main()

"""Ahead-of-time compilation for GPUs that are not here: it succeeds, and costs what the committed table says."""

from __future__ import annotations

import json

import pytest
import triton

from ssmvdm_kernels.triton_kernels import scan_backward
from ssmvdm_kernels.triton_kernels.launch import sizes_of
from tests.gpu import test_large

from . import table
from .kernels import CALLS, LAYOUTS
from .offline import TARGETS, compiling_for

TABLE = json.loads(table.FILE.read_text())
MOST_REGISTERS = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "sm_120": 255, "gfx942": 512}  # that a thread can have


def check(architecture: str, call: str, layout: str) -> None:
    found = table.measured(architecture, call, layout)
    assert found["registers"] <= MOST_REGISTERS[architecture]
    if triton.__version__ not in TABLE:
        pytest.skip(f"it compiles; the table is of Triton {', '.join(TABLE)} and not {triton.__version__}")
    wanted = TABLE[triton.__version__][architecture][table.key_of(call, layout)]
    assert found == wanted, "see `make triton-resources`"


@pytest.mark.parametrize("call", ["scan forward", "scan backward"])
def test_the_scan_over_channels(call):
    check("sm_90", call, "channels")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("architecture", TARGETS)
def test_every_kernel(architecture, call, layout):
    check(architecture, call, layout)


@pytest.mark.parametrize("shape", test_large.SHAPES)
def test_few_sequences_and_many_are_divided_alike(shape):
    """So that the sums over channels have the same bits, which the GPU's own tests of these shapes want."""
    large = test_large.SHAPES[shape]
    u = large.few.inputs("meta")["u"]
    with compiling_for("sm_90", ()):
        sizes = [sizes_of(x, large.few.states, 1, scan_backward.TILINGS.of(x)) for x in (u, large.repeated(u))]
    assert sizes[0].channel_slices == sizes[1].channel_slices


@pytest.mark.parametrize("version", TABLE)
def test_the_table_is_whole_and_near_the_cuda_kernels(version):
    for architecture in TARGETS:
        entries = TABLE[version][architecture]
        assert entries.keys() == {table.key_of(call, layout) for call in CALLS for layout in LAYOUTS}
        for call, times in table.TIMES_CUDA.items():
            for layout in LAYOUTS if architecture.startswith("sm_") else ():
                slots, most = entries[table.key_of(call, layout)]["slots"], times * table.goal(call, layout)
                assert slots <= table.MORE.get((architecture, call, layout), most), (architecture, call, layout)
    for call, times in table.TIMES_CUDA.items():
        for layout in LAYOUTS:
            slots = TABLE[version]["sm_90"][table.key_of(call, layout)]["slots"]
            assert slots <= times * table.cuda_slots(call, layout), (call, layout)


def test_the_report_is_of_the_table():
    """Numbers of the CUDA kernels aside, which have a report of their own."""
    version = max(TABLE, key=lambda version: list(map(int, version.split("."))))
    (wanted, slots_wanted), (found, slots_found) = (
        text.split("\n## Issue slots") for text in (table.report(version, TABLE[version]), table.REPORT.read_text())
    )
    assert found == wanted
    of_triton = slice(0, 6)  # cells of a row: nothing, the kernel, four architectures
    for line_wanted, line_found in zip(slots_wanted.splitlines(), slots_found.splitlines(), strict=True):
        assert line_found.split("|")[of_triton] == line_wanted.split("|")[of_triton]


def test_shapes_share_a_kernel():
    """Neither strides nor sizes are compiled in: shapes whose numbers differ in kind give one kernel."""
    from ssmvdm_kernels.triton_kernels import scan_forward
    from tests.kernels.cases import Case

    from . import kernels
    from .offline import compiling_for

    with compiling_for("sm_90", kernels.KERNELS) as launched:
        for case in (
            Case(channels=16, length=16, lanes=(1,), batch=1, layout="channels"),
            Case(channels=7, length=1, lanes=(3,), batch=5, layout="channels"),
            Case(channels=33, length=12, lanes=(), batch=2, layout="channels"),
        ):
            tensors = kernels.ops.ScanTensors(**case.inputs())
            scan_forward.scan_forward(*tensors, kernels.ops.BOTH, kernels.ops.SUM, True, False)
    assert len({kernel.hash for kernel in launched}) == 1

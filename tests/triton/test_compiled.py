"""Ahead-of-time compilation for GPUs that are not here: it succeeds, and costs what the committed table says."""

from __future__ import annotations

import json

import pytest
import triton

from .kernels import CALLS, LAYOUTS
from .offline import TARGETS
from .table import FILE, key_of, measured

TABLE = json.loads(FILE.read_text())[triton.__version__] if triton.__version__ in FILE.read_text() else {}
MOST_REGISTERS = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "sm_120": 255, "gfx942": 512}  # that a thread can have


def check(architecture: str, call: str, layout: str) -> None:
    found = measured(architecture, call, layout)
    assert found["registers"] <= MOST_REGISTERS[architecture]
    wanted = TABLE.get(architecture, {}).get(key_of(call, layout))
    if wanted is None:
        pytest.skip(f"it compiles; the table has no entry for it with Triton {triton.__version__}")
    assert found == wanted, "see `python -m tests.triton.table`"


@pytest.mark.parametrize("call", ["scan forward", "scan backward"])
def test_the_scan_over_channels(call):
    check("sm_90", call, "channels")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("architecture", TARGETS)
def test_every_kernel(architecture, call, layout):
    check(architecture, call, layout)


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

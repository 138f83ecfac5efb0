"""Forward and backward of every option, size, dtype and layout within the two bounds of bounds.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.conftest import COMPILED_BACKENDS

from . import cases
from .bounds import judge
from .cases import Case
from .checks import check_case, expected, run_case

# Triton compiles each set of options and kind of strides when it is first used, for seconds: it has the pairs.
BUILT = [backend for backend in COMPILED_BACKENDS if backend != "triton"]


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", cases.core(), ids=by_name)
def test_core(case, backend):
    check_case(case, backend)


@pytest.mark.parametrize("case", cases.pairs(), ids=by_name)
def test_every_pair_of_options(case, compiled_backend):
    check_case(case, compiled_backend)


@pytest.mark.parametrize("compiled_backend", BUILT, indirect=True)
@pytest.mark.parametrize("case", cases.triples(), ids=by_name)
def test_every_triple_of_what_kernels_branch_on(case, compiled_backend):
    check_case(case, compiled_backend)


@pytest.mark.parametrize("case", cases.sizes(), ids=by_name)
def test_sizes(case, compiled_backend):
    check_case(case, compiled_backend)


@pytest.mark.parametrize("case", cases.classic(), ids=by_name)
def test_without_lanes(case, compiled_backend):
    check_case(case, compiled_backend)


@pytest.mark.parametrize("case", cases.layouts(), ids=by_name)
def test_layouts(case, compiled_backend):
    check_case(case, compiled_backend)


@pytest.mark.parametrize("compiled_backend", BUILT, indirect=True)
@pytest.mark.parametrize("case", cases.by_tensor(), ids=by_name)
def test_layouts_of_one_tensor(case, compiled_backend):
    check_case(case, compiled_backend)


@pytest.mark.parametrize("case", cases.regimes(), ids=by_name)
def test_regimes(case, backend):
    check_case(case, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", cases.regimes(), ids=by_name)
def test_states_are_float32_whatever_the_storage(case, dtype, compiled_backend):
    check_case(dataclasses.replace(case, dtype=dtype), compiled_backend)


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("values", ["plain", "strong", "weak"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_the_median_row_is_no_worse_than_eager(layout, values, direction, compiled_backend):
    """Over all rows of (batch, channel): the median error against that of the eager run and one unit of the output."""
    case = Case(
        direction=direction, layout=layout, values=values, batch=4, channels=24, length=24, states=16, lanes=(5,)
    )
    truth = expected(case)
    found = run_case(case, compiled_backend)
    for name in ("y", "u", "delta", "z"):
        ours, theirs, unit = (x.median() for x in truth.rows(name, found[name]))
        judge(
            f"{name}: the median row has {ours:.3g} of the a priori bound, the eager run's {theirs:.3g}, "
            f"a unit {unit:.3g}",
            ours, theirs + unit, is_exact=not found[name].is_cuda,
        )  # fmt: skip

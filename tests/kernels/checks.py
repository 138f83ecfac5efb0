"""Calling the library on a case, and comparing what comes out: with the bounds, or bit for bit."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

import ssmvdm_kernels
from ssmvdm_kernels import backends, ops
from ssmvdm_kernels.operators import Operators

from .bounds import Expected
from .cases import Case
from .truth import NAMES

POSITIONAL = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def device_of(backend: str) -> str:
    """Where a backend's tensors live."""
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def operators_of(backend: str) -> Operators:
    """What a backend with kernels computes with."""
    return backends.REGISTRY[backend].operators


def skip_float64_on_a_gpu(x: Tensor) -> None:
    """The kernels for GPUs refuse it (test_cuda_backend.py); the same cases run on the CPU."""
    if x.is_cuda and x.dtype == torch.float64:
        pytest.skip("float64 is computed on the CPU only")


def operator_arguments(case: Case, device: str, requires_grad: bool) -> tuple:
    """The arguments of the operator scan_forward for a case, but for the last; scan_backward has them too."""
    inputs = case.inputs(device)
    skip_float64_on_a_gpu(inputs["u"])
    tensors = [None if inputs[name] is None else inputs[name].requires_grad_(requires_grad) for name in NAMES]
    direction = {"forward": ops.FORWARD, "reverse": ops.REVERSE, "both": ops.BOTH}[case.direction]
    merge = {"sum": ops.SUM, "mean": ops.MEAN, "cat": ops.CAT}[case.options.merge]
    return *tensors, direction, merge, case.softplus


def call(inputs: dict, case: Case, backend: str):
    """The public function on these tensors -> (y, last_state or None); the halves of "none" are put side by side."""
    skip_float64_on_a_gpu(inputs["u"])
    given = {name: x for name, x in inputs.items() if x is not None}
    positional = [given.pop(name, None) for name in POSITIONAL]
    if case.direction == "both":
        found = ssmvdm_kernels.bidirectional_selective_scan(
            *positional, case.softplus, merge=case.merge, backend=backend, **given
        )
        return (torch.cat(found, 1) if case.merge == "none" else found), None
    found = ssmvdm_kernels.selective_scan(
        *positional, case.softplus, case.has_last, reverse=case.direction == "reverse", backend=backend, **given
    )
    return found if case.has_last else (found, None)


def run(inputs: dict, case: Case, backend: str, dy: Tensor, dlast: Tensor | None = None) -> dict[str, Tensor]:
    """Forward and backward -> "y", "last_state" if the case has one, and the gradient of every tensor given."""
    leaves = {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    y, last = call(leaves, case, backend)
    outputs, grads = ([y], [dy]) if last is None else ([y, last], [dy, dlast])
    names = [name for name, x in leaves.items() if x is not None]
    found = dict(zip(names, torch.autograd.grad(outputs, [leaves[name] for name in names], grads), strict=True))
    found["y"] = y.detach()
    if last is not None:
        found["last_state"] = last.detach()
    return found


def run_case(case: Case, backend: str) -> dict[str, Tensor]:
    """`run` on the case's own tensors."""
    device = device_of(backend)
    return run(case.inputs(device), case, backend, *case.output_gradients(device))


@functools.lru_cache(maxsize=256)
def _expected(case: Case) -> Expected:
    return Expected(case.inputs(), case.options, *case.output_gradients())


def expected(case: Case) -> Expected:
    """Truth and bounds of a case, computed once for all layouts that hold the same values."""
    return _expected(case if case.layout == "expanded" else dataclasses.replace(case, layout="lanes", odd_one=None))


def check_case(case: Case, backend: str) -> None:
    """Forward and backward of a case are within both bounds, everywhere."""
    truth = expected(case)
    for name, value in run_case(case, backend).items():
        truth.check(name, value)


def check_inputs(inputs: dict, case: Case, backend: str, dy: Tensor, dlast: Tensor | None = None) -> dict[str, Tensor]:
    """The same for tensors made by hand; returns the results."""
    truth = Expected(inputs, case.options, dy, dlast)
    found = run(inputs, case, backend, dy, dlast)
    for name, value in found.items():
        truth.check(name, value)
    return found


def bits(x: Tensor) -> Tensor:
    """The bit pattern as integers, with one pattern for every NaN and the sign of zero dropped."""
    x = torch.where(torch.isnan(x), torch.nan, x.detach()) + 0.0
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same_bits(actual: dict | Tensor, wanted: dict | Tensor, what: str = "result") -> None:
    """Equal shapes, dtypes and bits, for one tensor or for a dict of them."""
    if isinstance(wanted, dict):
        assert actual.keys() == wanted.keys(), f"{what}: {sorted(actual)} against {sorted(wanted)}"
        for name in wanted:
            assert_same_bits(actual[name], wanted[name], f"{what}, {name}")
        return
    assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype), (
        f"{what}: {tuple(actual.shape)} {actual.dtype}, wanted {tuple(wanted.shape)} {wanted.dtype}"
    )
    differ = bits(actual) != bits(wanted)
    if differ.any():
        place = tuple(int(i) for i in differ.nonzero()[0])
        raise AssertionError(
            f"{what}{list(place)}: {actual[place].item()!r} against {wanted[place].item()!r}; "
            f"{int(differ.sum())} of {differ.numel()} differ"
        )

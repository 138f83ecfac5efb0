"""Jobs for the emulated kernels with what must come out: the float64 truth and its bounds, over edge shapes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.kernels import cases, test_conv, test_s4d
from tests.kernels.bounds import usage
from tests.kernels.cases import Case
from tests.kernels.checks import expected

from . import build
from .calls import Job, Machine, Outcome
from .from_torch import job_of, to_torch

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
MODES = ("fast", *(pytest.param(mode, marks=pytest.mark.slow) for mode in build.MODES if mode != "fast"))


@dataclass(frozen=True)
class Check:
    """A job, the tensors that its outputs are shaped like, and the comparison with the truth."""

    job: Job
    like: dict[str, Tensor]
    compare: Callable[[str, Tensor, Machine], None]  # raises AssertionError

    def problems(self, outcome: Outcome) -> list[str]:
        """Everything that is wrong, in words."""
        found = list(outcome.problems)
        if outcome.is_complete:
            for name, x in self.tensors(outcome).items():
                try:
                    self.compare(name, x, self.job.machine)
                except AssertionError as error:
                    found.append(str(error))
        return found

    def on(self, machine: Machine) -> Check:
        """The same on another machine."""
        return dataclasses.replace(self, job=dataclasses.replace(self.job, machine=machine))

    def tensors(self, outcome: Outcome) -> dict[str, Tensor]:
        """Outputs and gradients in the shapes of the public functions."""
        return {name: to_torch(x, self.like[name]) for name, x in outcome.outputs.items()}


def scan(case: Case, machine: Machine | None = None, *, backward: bool = True, y_again: bool = True) -> Check:
    """The selective scan on one of the suite's cases."""
    inputs, (dy, dlast) = case.inputs(), case.output_gradients()
    like = {name: x for name, x in inputs.items() if x is not None} | {"y": dy, "y again": dy}
    state = (case.batch, case.channels, case.states, *case.lanes)
    like["last_state"] = torch.empty(state, dtype=case.parameter_dtype, device="meta")
    options = {"direction": case.direction, "merge": case.merge, "softplus": case.softplus, "last": case.has_last,
               "y": y_again}  # fmt: skip
    given = inputs | ({"dy": dy, "dlast": dlast} if backward else {})

    def compare(name: str, x: Tensor, machine: Machine) -> None:
        expected(case).check("y" if name == "y again" else name, x, is_exact=machine.exact)

    return Check(job_of("scan " + case.name, "scan", given, options, machine), like, compare)


def s4d(
    shape: str | tuple, merge: str, dtype: torch.dtype, layout: str, has_z: bool = True, has_reverse: bool = True,
    machine: Machine | None = None,
) -> Check:  # fmt: skip
    """The S4D scan on the shapes of its own tests; merge also names the single directions."""
    inputs = test_s4d.used(test_s4d.made(shape, dtype, layout, has_z, has_reverse), merge)
    direction = merge if merge in ("forward", "reverse") else "both"
    out = list(inputs["u"].shape)
    out[1] *= 2 if merge in ("cat", "none") else 1
    dy = torch.randn(out, generator=torch.Generator().manual_seed(7)).to(dtype)
    options = {"direction": direction, "merge": merge, "y": True}
    name = f"s4d {shape},{merge},{str(dtype).removeprefix('torch.')},{layout},z={has_z},reverse={has_reverse}"
    limits: dict[str, dict[str, Tensor]] = {}

    def compare(name: str, x: Tensor, _: Machine) -> None:
        if not limits:
            limits["truth"] = test_s4d.run(test_s4d.wide(inputs), merge, dy.double(), "reference")
            limits["allowed"] = test_s4d.bounds(inputs, merge, dy)
        name = "y" if name == "y again" else name
        truth, allowed = limits["truth"][name], limits["allowed"][name]
        stored = torch.finfo(x.dtype).eps / 2 if x.dtype in (torch.bfloat16, torch.float16) else 0.0
        allowed = allowed + stored * (truth.abs() + allowed) + torch.finfo(x.dtype).smallest_normal
        used = ((x.to(truth.dtype) - truth).abs() / allowed).nan_to_num(torch.inf)
        assert used.max() <= 1, f"{name}: {used.max().item():.3g} of its bound"

    return Check(
        job_of(name, "s4d", inputs | {"dy": dy}, options, machine), inputs | {"y": dy, "y again": dy}, compare
    )


def conv(
    shape: tuple[int, ...], width: int, dtype: torch.dtype, layout: str, separate: bool = True, has_bias: bool = True,
    activation: str | None = "silu", machine: Machine | None = None,
) -> Check:  # fmt: skip
    """The convolution in both directions."""
    inputs = test_conv.tensors(shape, width, dtype, layout, separate, has_bias, "cpu")
    generator = torch.Generator().manual_seed(3)
    dys = tuple(cases.lay_out(torch.randn(shape, generator=generator).to(dtype), layout) for _ in range(2))
    options = {"direction": "both", "silu": activation == "silu"}
    name = f"conv {shape},{width},{str(dtype).removeprefix('torch.')},{layout},{separate},{has_bias},{activation}"
    truth: dict = {}

    def compare(name: str, x: Tensor, _: Machine) -> None:
        if not truth:
            truth.update(test_conv.bounded(inputs, dys, activation))
        used = usage(x, truth[name], x.dtype).max()
        assert used <= 1, f"{name}: {used:.3g} of its bound"

    given = inputs | {"dy": dys[0], "dy_b": dys[1]}
    like = {name: x for name, x in inputs.items() if x is not None} | {"y": dys[0], "y_b": dys[1]}
    return Check(job_of(name.replace(" (", " ").replace(")", ""), "conv", given, options, machine), like, compare)


# -- families ----------------------------------------------------------------------------------------------------------


def of_storage(found: Iterable[Case]) -> list[Case]:
    """Only types that CUDA kernels take."""
    return [case for case in found if case.dtype in STORAGE]


def scan_sizes() -> list[Case]:
    """Each size of the scan around its tiles, in the three real layouts."""
    found = []
    for layout in cases.LAYOUTS:
        base = Case(layout=layout, length=5)
        found += [dataclasses.replace(base, length=length) for length in (1, 3, 4, 8, 9, 31, 33, 65)]
        found += [dataclasses.replace(base, states=states) for states in (1, 15, 16, 17, 32, 33)]
        found += [dataclasses.replace(base, channels=channels) for channels in (1, 8, 31, 33, 65)]
        found += [dataclasses.replace(base, lanes=lanes) for lanes in ((), (1,), (31,), (32,), (3, 11), (65,))]
        found += [dataclasses.replace(base, length=length, states=16, lanes=()) for length in (12, 17, 64, 130)]
    return list(dict.fromkeys(found))


def conv_edges() -> Iterator[Check]:
    shapes = [(2, 5, 1, 3), (1, 19, 33, 17), (3, 16, 16), (2, 3, 5, 2, 3), (1, 34, 20, 4), (1, 2, 130, 4)]
    grid = itertools.product(shapes, (1, 2, 3, 4, 5, 8), STORAGE, (*cases.LAYOUTS, "narrowed", "offset"))
    for i, (shape, width, dtype, layout) in enumerate(grid):
        if i % 7 == 0:
            yield conv(shape, width, dtype, layout, i % 2 == 0, i % 5 != 0, None if i % 3 == 0 else "silu")


def s4d_edges() -> Iterator[Check]:
    grid = itertools.product(test_s4d.SHAPES, (*test_s4d.MERGES, "forward", "reverse"), STORAGE, test_s4d.LAYOUTS)
    for i, (shape, merge, dtype, layout) in enumerate(grid):
        if i % 5 == 0:
            yield s4d(shape, merge, dtype, layout, i % 2 == 0, i % 3 != 0)


def edges(kernel: str) -> Iterator[Check]:
    """Of scan | s4d | conv."""
    if kernel == "scan":
        yield from (scan(case) for case in [*of_storage(cases.core()), *scan_sizes()])
    else:
        yield from {"conv": conv_edges, "s4d": s4d_edges}[kernel]()

"""The CUDA scan on the CPU: against the truth at edge and full shapes in every build, and bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.kernels import cases
from tests.kernels.cases import Case
from tests.kernels.checks import assert_same_bits

from . import build, calls, suite
from .edges import failures, flipped, needs_emulator, results, tensors_of
from .memory import Memory, elements, span_of

pytestmark = needs_emulator
ROWS = ("y", "u", "delta", "z", "u_b", "delta_b")  # each row of these belongs to one (batch, channel, lane)
LAYOUTS = cases.LAYOUTS


def strides() -> list[Case]:
    """Layouts that no fast path was made for, in each direction."""
    return [
        Case(layout=layout, direction=direction, channels=channels, lanes=lanes, length=9, initial=True, last=True)
        for layout in cases.ODD_LAYOUTS
        for direction in ("forward", "reverse", "both")
        for channels, lanes in ((6, (3, 5)), (17, ()))
    ]


FAMILIES = {
    "sizes": suite.scan_sizes,
    "options": lambda: suite.of_storage([*cases.pairs(), *cases.core()]),
    "strides": strides,
    "regimes": lambda: cases.regimes()[::2],
}
# The width of the published network's layers at its lengths, and long rows.
FULL = [
    Case(batch=1, channels=channels, length=length, lanes=lanes, states=16, dtype=dtype, layout=layout, separate="scan")
    for channels, length, lanes, dtype, layout in (
        (224, 16, (5,), torch.bfloat16, "channels"),
        (224, 64, (), torch.float16, "length"),
        (56, 16, (33,), torch.bfloat16, "lanes"),
        (40, 256, (), torch.float32, "channels"),
        (4, 1000, (), torch.float32, "length"),
    )
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", suite.MODES)
def test_edges(mode, family):
    assert not failures(mode, "scan", [suite.scan(case) for case in FAMILIES[family]()])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_worse_than_eager(family):
    """With exact functions the errors are those of the algorithm: at most twice the eager run's."""
    machine = calls.Machine(exact=True)
    assert not failures("fast", "scan", [suite.scan(case, machine) for case in FAMILIES[family]()])


@pytest.mark.parametrize("case", FULL, ids=lambda case: case.name)
def test_full_shapes(case):
    assert not failures("fast", "scan", [suite.scan(case)])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["asan", "race"])
def test_full_shapes_checked(mode):
    assert not failures(mode, "scan", [suite.scan(case) for case in FULL[:3]])


MACHINES = {
    "one multiprocessor": calls.Machine(multiprocessors=1),
    "132 multiprocessors": calls.Machine(multiprocessors=132),
    "163 KiB of shared memory": calls.Machine(shared_bytes=163 * 1024),
    "99 KiB of shared memory": calls.Machine(shared_bytes=99 * 1024),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_other_devices(machine):
    shapes = [(33, 6, (35,)), (70, 40, (2,)), (300, 6, ())]  # length, channels, lanes
    found = [
        Case(layout=layout, states=16, length=length, channels=channels, lanes=lanes)
        for layout in LAYOUTS
        for length, channels, lanes in shapes
    ]
    assert not failures("fast", "scan", [suite.scan(case, MACHINES[machine]) for case in found])


def test_no_more_blocks_than_a_device_holds():
    """The forward pass wants 32 blocks of a multiprocessor, which seven slices of the channels do not divide."""
    case = Case(layout="channels", states=16, length=1, channels=224, lanes=(), batch=12)
    check = suite.scan(case, calls.Machine(multiprocessors=1), backward=False)
    found = calls.run(build.harness("fast", "scan"), check.job)
    assert not found.problems and 28 <= found.counters["blocks"] <= 32


BITS = [
    Case(layout=layout, length=21, channels=34, lanes=lanes, states=states, separate=separate)
    for layout in LAYOUTS
    for lanes, states, separate in (((5,), 16, "all"), ((37,), 4, "shared"))
]


@pytest.mark.parametrize("case", BITS, ids=lambda case: case.name)
def test_no_order_of_blocks_or_threads_changes_a_bit(case):
    check = suite.scan(case)
    wanted = results(check)
    for order, seed in (("reverse", 1), ("random", 1), ("random", 2)):
        assert_same_bits(results(check, order=order, seed=seed), wanted)


def part_of(check: suite.Check, index) -> suite.Check:
    """Some of the sequences alone, where they lie."""
    return tensors_of(check, lambda name, x: x[index] if x.ndim >= 4 else x)


def assert_parts_equal_the_whole(check: suite.Check, parts: tuple, machine: calls.Machine) -> None:
    """Rows come out the same, bit for bit, whatever else is computed in the same call."""
    harness = build.harness("fast", "scan")
    whole = calls.run(harness, check.on(machine).job)
    assert not whole.problems
    for index in parts:
        found = calls.run(harness, part_of(check, index).on(machine).job)
        assert not found.problems
        for name in set(ROWS) & set(found.outputs):
            assert np.array_equal(found.outputs[name], whole.outputs[name][index]), name


@pytest.mark.parametrize("case", BITS, ids=lambda case: case.name)
def test_parts_are_computed_as_the_whole_is(case):
    assert_parts_equal_the_whole(suite.scan(case), (np.s_[1:], np.s_[..., 1:3]), calls.Machine())


MANY = {
    "lanes": (Case(channels=2, length=2, states=1, lanes=(32_769,)), (np.s_[..., 32_766:], np.s_[..., :3])),
    "batch": (
        Case(batch=65_537, channels=1, length=2, states=1, lanes=(), layout="channels"),
        (np.s_[65_534:], np.s_[:3]),
    ),
}


@pytest.mark.parametrize("what", MANY)
def test_more_than_65535_sequences(what):
    case, parts = MANY[what]
    check = suite.scan(dataclasses.replace(case, separate="shared"))
    assert_parts_equal_the_whole(check, parts, calls.Machine(multiprocessors=132))


def test_more_than_65535_channels():
    machine = calls.Machine(multiprocessors=132)
    case = Case(batch=1, channels=65_537, length=1, states=1, lanes=(), layout="length", separate="shared")
    assert not failures("fast", "scan", [suite.scan(case, machine)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_directions_exchanged_with_time(layout):
    check = suite.scan(Case(layout=layout, length=22, channels=18, lanes=(5,), states=16))
    found = results(check)
    inputs = check.job.inputs

    def exchanged(name, x):
        other = name.removesuffix("_b") if name.endswith("_b") else name + "_b"
        x = inputs.get(other, x) if name in inputs and other in inputs else x
        return flipped(x) if x.ndim == 4 else x

    back = results(tensors_of(check, exchanged))
    assert_same_bits(back["y"].flip(2), found["y"])
    assert_same_bits(back["u_b"].flip(2), found["u"])
    assert_same_bits(back["A_b"], found["A"])


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_only_what_is_needed(direction):
    check = suite.scan(Case(direction=direction, length=9, initial=True, last=True), y_again=False)
    every = results(check)
    given = [name for name in every if name not in ("y", "last_state")]
    for needs in ((), *((name,) for name in given), ("A", "z"), ("B", "C", "delta_bias")):
        found = results(check, needs)
        assert set(found) == {"y", *needs} | ({"last_state"} if direction == "forward" else set())
        assert_same_bits(found, {name: every[name] for name in found})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("time", [0, 8, 20])
def test_a_nan_stays_in_its_row(time, layout):
    """In time it goes with the direction; sums over channels have it at its own sequence."""
    check = suite.scan(Case(direction="forward", layout=layout, channels=34, length=21, lanes=(5,), states=16))
    clean = results(check)

    def spoiled(name, x):
        x = x.copy(order="K")
        if name == "u":
            x[1, 7, time, 2] = np.nan
        return x

    found = results(tensors_of(check, spoiled))
    for name in ("y", "delta", "z", "B", "C"):
        spread = (torch.isnan(found[name]) & ~torch.isnan(clean[name])).nonzero()
        assert len(spread), name
        assert (spread[:, 0] == 1).all() and (spread[:, -1] == 2).all(), name
        if name not in ("B", "C"):
            assert (spread[:, 1] == 7).all(), name
        if name in ("y", "z", "C"):
            assert (spread[:, -2] >= time).all(), name


class FarApart(Memory):
    """Puts one array into address space that is used at a few places only; the others where they are."""

    def __init__(self, name: str, axis: int):
        super().__init__(fence=0)
        self.name, self.axis = name, axis

    def input(self, name, x):
        return x if x is None or name != self.name else self._spread(name, x.shape, x.dtype, x)

    def output(self, name, shape, dtype, like=None):
        if name != self.name:
            return super().output(name, shape, dtype, like)
        return self._spread(name, shape, dtype, None)

    def _spread(self, name, shape, dtype, values):
        strides = np.cumprod([1, *shape[:0:-1]])[::-1].tolist()
        strides[self.axis] = BEYOND // (shape[self.axis] - 1)
        memory = np.empty(span_of(shape, tuple(strides)), dtype)
        view = elements(memory, 0, shape, tuple(strides))
        if values is not None:
            view[...] = values
        return view


BEYOND = 2**31 + 24


@pytest.mark.parametrize("axis", [0, 1, 3], ids=["batch", "channels", "lanes"])
@pytest.mark.parametrize("name", ["u", "delta", "z", "B", "C", "dy", "y", "du", "dB"])
def test_offsets_beyond_32_bits(name, axis):
    """One array whose last element along one axis lies beyond 2^31 elements; the same bits as when it is dense.

    Launchers take no row, all times of one sequence, that spans so much: the binding copies those.
    """
    case = Case(dtype=torch.bfloat16, batch=2, channels=3, length=3, lanes=(4,), states=2, separate="shared")
    check = suite.scan(case, y_again=False)
    harness = build.harness("fast", "scan")
    wanted = calls.run(harness, check.job)
    steps, outputs = calls.scan(FarApart(name, axis), check.job.inputs, check.job.options, None)
    for launcher, arguments in steps:
        getattr(harness, launcher)(arguments)
    assert not wanted.problems
    assert all(np.array_equal(outputs[key], wanted.outputs[key]) for key in wanted.outputs)

"""The CUDA kernels of S4D on the CPU: both forms against the truth at edge shapes in every build, and bit for bit."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tests.kernels import cases, test_s4d
from tests.kernels.checks import assert_same_bits

from . import suite
from .calls import Machine
from .edges import LAYOUTS, failures, flipped, needs_emulator, results, sizes, storage, tensors_of

pytestmark = needs_emulator
MERGES = ("sum", "mean", "cat", "forward", "reverse")
MODES = (1, 2, 7, 16, 64)
DIRECT, RECURRENCE = (2, 18, 21, (5,), 7), (2, 18, 21, (5,), 2)  # by length + 8 <= 12 modes
SEQUENCES = ("y", "y again", "u", "u_b", "z")


def checks_of_sizes() -> list[suite.Check]:
    """Lengths, channels and lanes at their edges in every layout, by either form; types and options in turn."""
    grid = itertools.product(sizes(length=20), LAYOUTS, (1, 3))
    return [
        suite.s4d(
            (2, channels, length, lanes, modes), MERGES[i % 5], storage(i), layout, i % 3 != 0, i % 4 != 0,
        )
        for i, ((length, channels, lanes), layout, modes) in enumerate(grid)
    ]  # fmt: skip


def checks_of_modes() -> list[suite.Check]:
    grid = itertools.product(MODES, (7, 20, 65), MERGES)
    found = [
        suite.s4d((1, 5, length, (4,), modes), merge, storage(i), LAYOUTS[i % 3], i % 2 == 0, i % 4 != 0)
        for i, (modes, length, merge) in enumerate(grid)
    ]
    return [*found, *(suite.s4d((1, 3, 257, (), 64), "sum", storage(i), layout) for i, layout in enumerate(LAYOUTS))]


def checks_of_strides() -> list[suite.Check]:
    """Sequences of one call in different layouts: expanded, misaligned, cut out of larger tensors."""

    def placed(check: suite.Check, layout: str) -> suite.Check:
        names = [name for name, x in check.job.inputs.items() if x is not None and x.ndim == 4]

        def change(name: str, x: np.ndarray) -> np.ndarray:
            if name not in names:
                return x
            return cases.lay_out(torch.from_numpy(x), layout, names.index(name)).numpy()

        return tensors_of(check, change)

    odd = [layout for layout in cases.ODD_LAYOUTS if layout != "expanded"]  # which changes values
    shapes = [(2, 8, 24, (6,), 8), (2, 8, 24, (6,), 2)]
    return [
        placed(suite.s4d(shape, merge, dtype, "lanes"), layout)
        for shape, layout, (merge, dtype) in itertools.product(
            shapes, odd, (("sum", torch.float32), ("cat", torch.float16))
        )
    ]


FAMILIES = {"sizes": checks_of_sizes, "modes": checks_of_modes, "strides": checks_of_strides}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", suite.MODES)
def test_edges(mode, family):
    every = 5 if family == "sizes" and mode != "fast" else 1  # of six checks of a size, one or two
    assert not failures(mode, "s4d", FAMILIES[family]()[::every])


@pytest.mark.parametrize("modes", [1, 3])
def test_warps_that_take_several_units(modes):
    checks = [
        suite.s4d((5000, 2, 9, (), modes), "sum", torch.float32, "channels"),
        suite.s4d((1, 2, 9, (70000,), modes), "reverse", torch.float32, "lanes"),
    ]
    assert not failures("fast", "s4d", checks)


def test_little_shared_memory_takes_the_direct_form():
    """Where the states of a recurrence do not fit, taps do at any length."""
    check = suite.s4d(RECURRENCE, "sum", torch.float32, "lanes")
    small = check.on(Machine(shared_bytes=256))
    assert not failures("fast", "s4d", [small])
    assert (results(small)["y"] != results(check)["y"]).any(), "the forms round differently"


@pytest.mark.parametrize("shape", [DIRECT, RECURRENCE])
@pytest.mark.parametrize("merge", ["sum", "cat"])
@pytest.mark.parametrize("dtype", suite.STORAGE, ids=str)
def test_layouts_and_orders_give_the_same_bits(dtype, merge, shape):
    """Sums over sequences are added in the order of the layout, but never in that of blocks or threads."""
    wanted = None
    for layout in LAYOUTS:
        check = suite.s4d(shape, merge, dtype, layout)
        found = results(check)
        assert_same_bits(found["y again"], found["y"])
        assert_same_bits(results(check, order="random", multiprocessors=7), found)
        wanted = wanted or found
        assert_same_bits({n: found[n] for n in SEQUENCES}, {n: wanted[n] for n in SEQUENCES})


@pytest.mark.parametrize("shape", [DIRECT, RECURRENCE])
def test_swapping_directions_and_time_gives_the_same_bits(shape):
    check = suite.s4d(shape, "sum", torch.float32, "lanes")
    found, inputs = results(check), check.job.inputs

    def exchanged(name, x):
        other = name if name in ("z", "dy") else name.removesuffix("_b") if name.endswith("_b") else name + "_b"
        return flipped(inputs[other]) if x.ndim == 4 else inputs[other]

    back = results(tensors_of(check, exchanged))
    for name, other in (("y", "y"), ("z", "z"), ("u", "u_b"), ("u_b", "u")):
        assert_same_bits(back[other].flip(2), found[name], name)


@pytest.mark.parametrize("shape", [DIRECT, RECURRENCE])
def test_parts_are_computed_as_the_whole_is(shape):
    check = suite.s4d(shape, "sum", torch.float32, "lanes")
    whole = results(check)
    parts = {
        "lanes": (lambda x: x[..., 1:4] if x.ndim == 4 else x, (..., slice(1, 4))),
        "batch": (lambda x: x[1:] if x.ndim == 4 else x, slice(1, None)),
        "channels": (lambda x: x[:, 3:] if x.ndim == 4 else x[3:], (slice(None), slice(3, None))),
    }
    for name, (cut, index) in parts.items():
        part = tensors_of(check, lambda _, x, cut=cut: cut(x).copy(order="K"))
        like = {n: x[index] for n, x in whole.items() if n in SEQUENCES}
        parameters = {n: x[3:] if name == "channels" else x for n, x in whole.items() if n not in SEQUENCES}
        found = results(dataclasses.replace(part, like=like | parameters))
        assert_same_bits({n: found[n] for n in like}, like, name)
        if name == "channels":
            assert_same_bits({n: found[n] for n in parameters}, parameters, name)


@pytest.mark.parametrize("shape", [DIRECT, RECURRENCE])
@pytest.mark.parametrize("merge", ["sum", "cat"])
def test_only_what_is_needed(merge, shape):
    check = suite.s4d(shape, merge, torch.float32, "lanes")
    every = results(check)
    for needs in (("u",), ("u_b",), ("z",), ("decay",), ("weight_b", "D"), ()):
        found = results(check, needs)
        assert set(found) == {"y", "y again", *needs}
        assert_same_bits(found, {name: every[name] for name in found})


@pytest.mark.parametrize("shape", [DIRECT, RECURRENCE])
@pytest.mark.parametrize("name", ["u", "decay", "weight", "D"])
def test_one_shared_argument_has_the_gradients_of_both(name, shape):
    check = suite.s4d(shape, "sum", torch.float32, "lanes")
    same = check.job.inputs[name]
    apart = results(tensors_of(check, lambda key, x: same if key == name + "_b" else x))
    shared = results(tensors_of(check, lambda key, x: None if key == name + "_b" else x))
    wanted = {key: x for key, x in apart.items() if key != name + "_b"}
    assert_same_bits(shared, wanted | {name: apart[name] + apart[name + "_b"]})


@pytest.mark.parametrize("shape", [DIRECT, RECURRENCE])
@pytest.mark.parametrize("time", [0, 11, 16, 20])
def test_a_nan_touches_what_comes_after_it_and_nothing_else(time, shape):
    check = suite.s4d(shape, "cat", torch.float32, "lanes", has_z=False)
    clean = results(check)["y"]

    def spoiled(name, x):
        x = x.copy()
        if name in ("u", "u_b"):
            x[0, 2, time, 1] = np.nan
        return x

    wanted = clean.clone()
    wanted[0, 2, time:, 1] = wanted[0, 18 + 2, : time + 1, 1] = torch.nan
    assert_same_bits(results(tensors_of(check, spoiled))["y"], wanted)


@pytest.mark.parametrize(("growth", "length"), [(1e10, 3), (1e10, 19), (100.0, 22)])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_taps_that_overflow_reach_only_steps_that_far_away(direction, growth, length):
    """Zeros beyond the ends of a sequence are not multiplied with infinite taps."""
    check = suite.s4d((1, 2, length, (2,), 3), direction, torch.float32, "lanes", has_z=False)

    def growing(name, x):
        x = np.ones_like(x)
        if x.ndim == 3:
            x[:] = growth if name == "decay" else 1, 0
        return x

    y = results(tensors_of(check, growing))["y"][0, 0, :, 0]
    truth = (6 * growth ** torch.arange(length, dtype=torch.float64)).cumsum(0)
    truth = truth if direction == "forward" else truth.flip(0)
    assert_same_bits(torch.isfinite(y).int(), (truth < torch.finfo(torch.float32).max).int())


@pytest.mark.parametrize("modes", [2, 7])
def test_integers_are_exact(modes):
    """decay i turns a quarter each step: with whole numbers nothing is rounded."""
    check = suite.s4d((1, 9, 57, (), modes), "sum", torch.float32, "lanes", has_z=False)

    def whole(name, x):
        turn = np.stack([np.zeros(x.shape[:2]), np.ones(x.shape[:2])], -1) if name.startswith("decay") else np.round(x)
        return turn.astype(np.float32)

    check = tensors_of(check, whole)
    inputs = {name: torch.from_numpy(x).double() for name, x in check.job.inputs.items() if x is not None}
    inputs = {n: torch.view_as_complex(x) if n.startswith(("decay", "weight")) else x for n, x in inputs.items()}
    dy = inputs.pop("dy")
    inputs = {n: x[..., 0] if x.dim() == 4 else x for n, x in inputs.items()}
    truth, found = test_s4d.run(inputs, "sum", dy[..., 0], "reference"), results(check)
    assert_same_bits({n: found[n].to(x.dtype).abs() for n, x in truth.items()}, {n: x.abs() for n, x in truth.items()})


def test_no_modes_and_no_steps():
    ordinary, parameters = ("u", "u_b", "D", "D_b"), ("decay", "weight", "decay_b", "weight_b")
    for length, modes, needs in ((6, 0, ordinary), (0, 4, (*ordinary, *parameters))):
        check = suite.s4d((2, 3, length, (5,), modes), "sum", torch.float32, "lanes", has_z=False)
        found, inputs = results(check, needs), check.job.inputs
        u, u_b, dy = (torch.from_numpy(inputs[name]) for name in ("u", "u_b", "dy"))
        D, D_b = (torch.from_numpy(inputs[name])[:, None, None] for name in ("D", "D_b"))
        assert_same_bits(found["y"], D * u + D_b * u_b)
        assert_same_bits(found["u"], D * dy)
        torch.testing.assert_close(found["D_b"], (dy * u_b).sum((0, 2, 3)))
        assert all((found[name] == 0).all() for name in parameters if name in needs)

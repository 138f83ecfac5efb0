"""The CUDA convolution on the CPU: against the truth at edge shapes in every build, and bit for bit."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from tests.kernels import cases
from tests.kernels.checks import assert_same_bits

from . import suite
from .edges import LAYOUTS, failures, flipped, needs_emulator, placed, results, sizes, storage, tensors_of

pytestmark = needs_emulator
WIDTHS = (*range(1, 9), 13)
SEQUENCES = ("x", "y", "y_b")


def checks_of_sizes() -> list[suite.Check]:
    """Lengths, channels and lanes at their edges in every layout; types, filters and options in turn."""
    grid = itertools.product(sizes(), LAYOUTS)
    return [
        suite.conv(
            (2, channels, length, *lanes), 4 if i % 3 else WIDTHS[i % len(WIDTHS)], storage(i), layout,
            i % 2 == 0, i % 5 != 0, None if i % 4 == 0 else "silu",
        )
        for i, ((length, channels, lanes), layout) in enumerate(grid)
    ]  # fmt: skip


def checks_of_filters() -> list[suite.Check]:
    grid = itertools.product(WIDTHS, suite.STORAGE, (3, 11))
    return [
        suite.conv((2, 3, length, 5), width, dtype, LAYOUTS[i % 3], i % 2 == 0, i % 5 != 0)
        for i, (width, dtype, length) in enumerate(grid)
    ]


def checks_of_strides() -> list[suite.Check]:
    """Expanded, misaligned, cut out of larger tensors; rows along time of which one stride alone forbids vectors."""
    grid = itertools.product(cases.ODD_LAYOUTS, (4, 6))
    found = [suite.conv((2, 8, 24, 6), width, storage(i), layout) for i, (layout, width) in enumerate(grid)]
    aligned = {"batch": 96, "row": 32, "time": 1, "lane": 16}
    for change in ({}, {"batch": 98}, {"row": 34, "batch": 104}, {"lane": 17, "row": 36, "batch": 108}):
        strides = tuple((aligned | change).values())
        check = suite.conv((2, 3, 16, 2), 4, torch.float32, "lanes")
        found.append(tensors_of(check, lambda _, x, to=strides: placed(x, to) if x.ndim == 4 else x))
    return found


FAMILIES = {"sizes": checks_of_sizes, "filters": checks_of_filters, "strides": checks_of_strides}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", suite.MODES)
def test_edges(mode, family):
    assert not failures(mode, "conv", FAMILIES[family]())


def test_warps_that_take_several_units():
    checks = [
        suite.conv((2 * 8200, 2, 2), 4, torch.float32, "channels"),
        suite.conv((1, 513, 2, 1025), 2, torch.float32, "lanes"),
    ]
    assert not failures("fast", "conv", checks)


@pytest.mark.parametrize("width", [4, 7])
@pytest.mark.parametrize("dtype", suite.STORAGE, ids=str)
def test_layouts_and_orders_give_the_same_bits(dtype, width):
    """Sums over sequences are added in the order of the layout, but never in that of blocks or threads."""
    wanted = None
    for layout in LAYOUTS:
        check = suite.conv((3, 34, 19, 5), width, dtype, layout)
        found = results(check)
        assert_same_bits(results(check, order="random", multiprocessors=7), found)
        wanted = wanted or found
        assert_same_bits({n: found[n] for n in SEQUENCES}, {n: wanted[n] for n in SEQUENCES})


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_directions_exchanged_with_time(layout, width):
    check = suite.conv((2, 18, 21, 5), width, torch.float32, layout)
    found = results(check)
    inputs = check.job.inputs

    def exchanged(name, x):
        other = name if name == "x" else name.removesuffix("_b") if name.endswith("_b") else name + "_b"
        return flipped(inputs[other]) if x.ndim == 4 else inputs[other]

    back = results(tensors_of(check, exchanged))
    assert_same_bits(back["y_b"].flip(2), found["y"])
    assert_same_bits(back["y"].flip(2), found["y_b"])


@pytest.mark.parametrize("width", [4, 6])
def test_one_direction_is_half_of_both(width):
    check = suite.conv((2, 6, 20, 3), width, torch.float32, "lanes")
    both = results(check)
    for direction, suffix in (("forward", ""), ("reverse", "_b")):
        job = check.job
        options = job.options | {"direction": direction}
        one = results(dataclasses.replace(check, job=dataclasses.replace(job, options=options)))
        names = [name + suffix for name in ("y", "weight", "bias")]
        assert_same_bits({n: one[n] for n in names}, {n: both[n] for n in names})


@pytest.mark.parametrize("width", [4, 6])
def test_only_what_is_needed(width):
    check = suite.conv((2, 6, 20, 3), width, torch.float32, "lanes")
    every = results(check)
    for needs in (("x",), ("weight",), ("bias_b",), ("weight", "weight_b"), ()):
        found = results(check, needs)
        assert set(found) == {"y", "y_b", *needs}
        assert_same_bits(found, {name: every[name] for name in found})


@pytest.mark.parametrize("width", [4, 6])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_shared_argument_has_the_gradients_of_both(name, width):
    """Of so few sequences that there is one partial sum."""
    check = suite.conv((2, 6, 20, 3), width, torch.float32, "lanes")
    same = check.job.inputs[name]
    apart = results(tensors_of(check, lambda key, x: same if key == name + "_b" else x))
    shared = results(tensors_of(check, lambda key, x: None if key == name + "_b" else x))
    wanted = {key: x for key, x in apart.items() if key != name + "_b"}
    assert_same_bits(shared, wanted | {name: apart[name] + apart[name + "_b"]})


@pytest.mark.parametrize("width", [3, 4, 6])
@pytest.mark.parametrize("time", [0, 7, 8, 20])
def test_a_nan_reaches_only_the_filter_around_it(time, width):
    check = suite.conv((2, 18, 21, 5), width, torch.float32, "lanes")
    clean = results(check)

    def spoiled(name, x):
        x = x.copy()
        if name == "x":
            x[1, 7, time, 2] = float("nan")
        return x

    found = results(tensors_of(check, spoiled))
    for name, reach in (("y", range(time, time + width)), ("y_b", range(time - width + 1, time + 1))):
        wanted = clean[name].clone()
        wanted[1, 7, [t for t in reach if 0 <= t < 21], 2] = torch.nan
        assert_same_bits(found[name], wanted, name)


def test_no_steps_give_zero_gradients():
    found = results(suite.conv((2, 3, 0, 5), 4, torch.float32, "lanes"))
    assert all((found[name] == 0).all() for name in ("weight", "bias", "weight_b", "bias_b"))

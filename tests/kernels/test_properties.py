"""What holds for every call: hypothesis draws sizes, options, dtypes and strides, and shrinks what fails.

The examples are the same in every run. `--hypothesis-profile=search` draws thousands of others. On the CPU: GPUs have
the listed cases, as the time on them is short and Triton compiles every set of options anew.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from . import cases, test_conv, test_s4d
from .bounds import usage
from .checks import assert_same_bits, call, check_case, run, run_case
from .drawn import LANES, SHAPES, STRIDES, scans
from .test_exact import part

either = pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
compiled = pytest.mark.parametrize("compiled_backend", ["cpu"], indirect=True)


@either
@given(scans())
def test_any_scan_is_within_its_bounds(backend, case):
    check_case(case, backend)


@either
@given(
    SHAPES, st.integers(1, 6), st.sampled_from(cases.DTYPES), STRIDES, st.booleans(), st.booleans(),
    st.sampled_from(("silu", None)),
)  # fmt: skip
def test_any_convolution_is_within_its_bounds(backend, shape, width, dtype, layout, separate, has_bias, activation):
    sizes = (*shape[:3], *shape[3])
    inputs = test_conv.tensors(sizes, width, dtype, layout, separate, has_bias, "cpu")
    dys = tuple(cases.lay_out(torch.randn(sizes).to(dtype), layout, index) for index in (1, 2))
    allowed = test_conv.bounded(inputs, dys, activation)
    for name, value in test_conv.run_conv(inputs, dys, activation, backend).items():
        used = usage(value, allowed[name], value.dtype)
        assert used.max() <= 1, f"{name}: {used.max():.3g} of its bound"


@pytest.mark.usefixtures("compiled_backend")
@compiled
@given(
    SHAPES, st.integers(1, 9), st.sampled_from(cases.DTYPES[:3]), st.sampled_from(test_s4d.LAYOUTS),
    st.sampled_from((*test_s4d.MERGES, "forward", "reverse")), st.booleans(), st.booleans(),
)  # fmt: skip
def test_any_s4d_scan_is_within_its_bounds(shape, modes, dtype, layout, merge, has_z, has_reverse):
    test_s4d.check(test_s4d.made((*shape, modes), dtype, layout, has_z, has_reverse), merge)


@compiled
@given(scans(), st.data(), st.sampled_from((0, 1, -1)))
def test_any_part_has_the_bits_of_the_whole(compiled_backend, case, data, axis):
    """A cut between sequences, lanes or channels: each side computes by itself what the whole computed."""
    case = dataclasses.replace(case, last=False)
    inputs, (dy, _) = case.inputs(), case.output_gradients()
    assume(case.lanes or axis != -1)
    assume(axis != 1 or ("groups" not in (case.B_form, case.C_form) and dy.shape[1] == case.channels))
    whole = run(inputs, case, compiled_backend, dy)
    cut = data.draw(st.integers(0, dy.shape[axis]), label="cut")
    for start, count in ((0, cut), (cut, dy.shape[axis] - cut)):
        found = run(part(inputs, axis, start, count, dy.dim()), case, compiled_backend, dy.narrow(axis, start, count))
        wanted = part(whole, axis, start, count, dy.dim())
        for name in found:
            is_per_channel = whole[name].dim() <= 2 or name.removesuffix("_b") not in ("B", "C")
            if is_per_channel if axis == 1 else whole[name].dim() > 2:  # what is no sum over the axis
                assert_same_bits(found[name], wanted[name], f"{name} of {start}:{start + count}")


@compiled
@given(scans(), st.integers(2, 8))
def test_any_number_of_threads_gives_the_same_bits(compiled_backend, case, threads):
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        results.append(run_case(case, compiled_backend))
    assert_same_bits(*results)


@compiled
@given(scans().filter(lambda case: case.direction != "both"), st.data())
def test_any_sequence_can_be_cut_in_time(compiled_backend, case, data):
    """The last state of one half is the initial state of the other, and nothing else of the past is needed."""
    case = dataclasses.replace(case, last=True)
    inputs = case.inputs()
    y, last = call(inputs, case, compiled_backend)
    state = inputs.pop("initial_state")
    cut = data.draw(st.integers(0, case.length), label="cut")
    halves = [(0, cut), (cut, case.length - cut)]
    parts = []
    for start, count in halves if case.direction == "forward" else halves[::-1]:
        half = {name: in_time(x, start, count, y.dim()) for name, x in inputs.items()} | {"initial_state": state}
        found, state = call(half, case, compiled_backend)
        parts.append(found)
    assert_same_bits(torch.cat(parts if case.direction == "forward" else parts[::-1], 2), y, "y")
    assert_same_bits(state, last, "last state")


def in_time(x: torch.Tensor | None, start: int, count: int, dims: int) -> torch.Tensor | None:
    """Some steps of a sequence; length is axis 2, or 3 where there are groups."""
    return x if x is None or x.dim() < dims else x.narrow(3 if x.dim() > dims else 2, start, count)


@given(scans(), st.data())
def test_any_wrong_size_is_refused_by_name(case, data):
    """One axis of one tensor longer or shorter than u, A and the other tensors say."""
    inputs = case.inputs()
    name = data.draw(st.sampled_from([name for name in case.given() if name not in ("u", "A")]), label="tensor")
    has_groups = name.removesuffix("_b") in "BC" and inputs[name].dim() > inputs["u"].dim()
    axes = [axis for axis in range(inputs[name].dim()) if not (has_groups and axis == 1)]
    axis = data.draw(st.sampled_from(axes), label="axis")
    size = data.draw(st.integers(0, 2 * inputs[name].shape[axis] + 1), label="size")
    assume(size != inputs[name].shape[axis])
    shape = [size if d == axis else old for d, old in enumerate(inputs[name].shape)]
    inputs[name] = inputs[name].new_zeros(shape)
    with pytest.raises(ValueError, match=rf"scan: (the groups of )?{name} must"):
        call(inputs, case, "auto")


@compiled
@given(LANES.filter(lambda lanes: len(lanes) > 1), scans())
def test_any_lanes_are_one_axis_of_lanes(compiled_backend, lanes, case):
    """(..., height, width) and (..., height * width) are the same sequences in the same order."""
    case = dataclasses.replace(case, lanes=lanes, length=min(case.length, 5), layout="lanes", dtype=torch.float32)
    inputs, grads = case.inputs(), case.output_gradients()
    wanted = run(inputs, case, compiled_backend, *grads)

    def flat(x):
        return x if x is None or x.dim() <= 3 else x.flatten(x.dim() - len(lanes))

    found = run({name: flat(x) for name, x in inputs.items()}, case, compiled_backend, *map(flat, grads))
    assert_same_bits(found, {name: flat(x) for name, x in wanted.items()})

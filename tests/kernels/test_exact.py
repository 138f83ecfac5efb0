"""Cases where float32 loses nothing, or loses the same on both sides: equal bits are wanted, not small errors.

The reference sums by torch.sum, whose order depends on strides: it takes part where no order matters.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from . import cases, truth
from .cases import Case
from .checks import assert_same_bits, device_of, run, run_case

DIRECTIONS = ("forward", "reverse", "both")
DTYPES = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
LAYOUTS = pytest.mark.parametrize("layout", cases.LAYOUTS)
PLAIN = Case(batch=4, channels=18, length=11, lanes=(6,), states=5)


def integers(case: Case, device: str) -> tuple[dict, torch.Tensor]:
    """Small whole numbers everywhere and A = 0: every intermediate is a whole number that even bfloat16 holds."""
    generator = torch.Generator().manual_seed(3)
    inputs = {}
    for index, (name, shape) in enumerate(case.shapes().items()):
        low, high = (0, 2) if name.startswith("delta") else (-1, 2)
        value = torch.randint(low, high, shape, generator=generator).to(device, case.dtype_of(name))
        inputs[name] = cases.lay_out(torch.zeros_like(value) if name in ("A", "A_b") else value, case.layout, index)
    dy = torch.randint(-1, 2, case.output_gradients()[0].shape, generator=generator)
    return inputs, cases.lay_out(dy.to(device, case.dtype), case.layout, 1)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_whole_numbers_without_decay(direction, layout, dtype, backend):
    case = Case(
        direction=direction, layout=layout, dtype=dtype, batch=2, channels=18, length=6, lanes=(5,), states=3,
        softplus=False, z=False, merge="cat" if direction == "both" else "sum",
    )  # fmt: skip
    inputs, dy = integers(case, device_of(backend))
    found = run(inputs, case, backend, dy)
    wide = {name: x.cpu().double() for name, x in inputs.items()}
    wanted = {"y": truth.scan(wide, case.options)[0]} | truth.scan_adjoint(wide, case.options, dy.cpu().double())
    for name, value in found.items():
        assert wanted[name].abs().max() * torch.finfo(value.dtype).eps <= 2, f"{name} is too large for the dtype"
        assert_same_bits(value.cpu(), wanted[name].to(value.dtype), name)


SCALES = {
    "u": {"y": 1, "last_state": 1, "A": 1, "delta": 1, "B": 1, "C": 1, "D": 1, "z": 1, "delta_bias": 1},
    "B": {"y": 1, "last_state": 1, "A": 1, "delta": 1, "u": 1, "C": 1, "z": 1, "delta_bias": 1},
    "C": {"y": 1, "A": 1, "delta": 1, "u": 1, "B": 1, "z": 1, "delta_bias": 1},
    "dy": {"u": 1, "delta": 1, "A": 1, "B": 1, "C": 1, "D": 1, "z": 1, "delta_bias": 1},
}


@LAYOUTS
@pytest.mark.parametrize("what", SCALES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("power", [-5, 12])
def test_scaling_by_a_power_of_two(power, direction, what, layout, backend):
    """The scan is linear in u, in B, in C and in dy: results scale with them bit for bit, or do not change at all."""
    case = dataclasses.replace(PLAIN, direction=direction, layout=layout, D=what in ("u", "dy"), separate="parameters")
    device, factor = device_of(backend), 2.0**power
    inputs, (dy, _) = case.inputs(device), case.output_gradients(device)
    plain = run(inputs, case, backend, dy)
    if what == "dy":
        scaled = run(inputs, case, backend, dy * factor)
    else:
        scaled = run(inputs | {what: inputs[what] * factor}, case, backend, dy)
    for name, value in plain.items():
        exponent = SCALES[what].get(name.removesuffix("_b"), 0)
        assert_same_bits(scaled[name], value * factor**exponent, name)


def part(inputs: dict, axis: int, start: int, size: int, dims: int) -> dict:
    """Narrow every tensor that has the axis: 0 batch, 1 channels, -1 and -2 the last lane axes."""
    found = {}
    for name, x in inputs.items():
        kind = name.removesuffix("_b")
        if x is None:
            found[name] = None
        elif axis == 1:
            per_channel = kind not in ("B", "C") or x.dim() == 2
            found[name] = x.narrow(0 if x.dim() <= 2 else 1, start, size) if per_channel else x
        else:
            found[name] = x.narrow(axis, start, size) if x.dim() >= dims else x
    return found


SUMS = {
    0: ("A", "D", "delta_bias"),
    1: ("B", "C"),
    -1: ("A", "D", "delta_bias"),
    -2: ("A", "D", "delta_bias"),
}


def assert_parts_are_the_whole(case: Case, backend: str, axis: int, spans) -> dict:
    """A run on each span (start, size) of the axis alone has the bits of the run on everything, whose inputs come back;
    gradients that sum over the axis aside."""
    device = device_of(backend)
    inputs, (dy, _) = case.inputs(device), case.output_gradients(device)
    whole = run(inputs, case, backend, dy)
    for start, count in spans:
        found = run(part(inputs, axis, start, count, dy.dim()), case, backend, dy.narrow(axis, start, count))
        wanted = part(whole, axis, start, count, dy.dim())
        for name in found:
            if name.removesuffix("_b") not in SUMS[axis]:
                assert_same_bits(found[name], wanted[name], f"{name} of {start}:{start + count}")
    return inputs


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("axis", [0, 1, -1], ids=["batch", "channels", "lanes"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_parts_are_the_whole(direction, axis, layout, dtype, compiled_backend):
    """Each sequence is computed by itself: a split changes no bit, except in gradients that sum over the split axis."""
    case = dataclasses.replace(PLAIN, direction=direction, layout=layout, dtype=dtype)
    size = case.inputs()["u"].shape[axis]
    assert_parts_are_the_whole(case, compiled_backend, axis, ((0, 1), (1, size - 2), (size - 1, 1)))


@DTYPES
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_many_sequences_are_their_parts(direction, dtype, compiled_backend):
    """Thousands of sequences side by side, of which the CPU takes neighbours together where they share cache lines."""
    case = Case(direction=direction, channels=5, length=4, lanes=(48, 48), states=2, layout="lanes", dtype=dtype)
    assert_parts_are_the_whole(case, compiled_backend, -2, ((row, 1) for row in range(48)))


@LAYOUTS
@pytest.mark.parametrize("merge", ["sum", "cat"])
def test_large_outputs_are_their_parts(merge, layout, compiled_backend):
    """Outputs of 2^19 elements or more go past the caches of a CPU, where whole lines can: not a bit differs."""
    case = Case(batch=2, channels=32, length=48, lanes=(12, 16), states=2, merge=merge, layout=layout)
    inputs = assert_parts_are_the_whole(case, compiled_backend, 0, ((0, 1), (1, 1)))
    assert inputs["u"].numel() >= 2**19 > inputs["u"][0].numel()


def time_reversed(inputs: dict, dims: int) -> dict:
    """Every sequence backwards; length is axis 2, or 3 where there are groups."""
    found = {}
    for name, x in inputs.items():
        has_time = x is not None and x.dim() >= dims and name != "initial_state" and name != "last_state"
        found[name] = x.flip(3 if x.dim() > dims else 2) if has_time else x
    return found


def time_sums(case: Case) -> set[str]:
    """Gradients that sum over time, in an order of the kernel's choice."""
    return {name for name, shape in case.shapes().items() if len(shape) <= 2}


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("B_form", ["shared", "groups", "constant"])
def test_reverse_is_forward_on_reversed_time(B_form, layout, dtype, compiled_backend):
    forward = Case(
        direction="forward", B_form=B_form, C_form=B_form, layout=layout, dtype=dtype, initial=True, last=True
    )
    reverse = dataclasses.replace(forward, direction="reverse")
    device = device_of(compiled_backend)
    inputs, (dy, dlast) = forward.inputs(device), forward.output_gradients(device)
    wanted = run(time_reversed(inputs, dy.dim()), forward, compiled_backend, dy.flip(2), dlast)
    found = run(inputs, reverse, compiled_backend, dy, dlast)
    wanted = time_reversed(wanted, dy.dim())
    for name in found.keys() - time_sums(forward):
        assert_same_bits(found[name], wanted[name], name)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("merge", cases.BOTH_MERGES)
def test_exchanging_directions_is_reversing_time(merge, layout, dtype, compiled_backend):
    case = Case(merge=merge, layout=layout, dtype=dtype, length=9, states=5)
    device = device_of(compiled_backend)
    inputs, (dy, _) = case.inputs(device), case.output_gradients(device)
    other = time_reversed(inputs, dy.dim())
    for name, name_b in truth.REVERSE_NAMES.items():
        other[name], other[name_b] = other[name_b], other[name]

    def exchanged(x):
        return torch.cat(x.chunk(2, 1)[::-1], 1) if case.options.merge == "cat" else x

    found = run(inputs, case, compiled_backend, dy)
    back = time_reversed(run(other, case, compiled_backend, exchanged(dy).flip(2)), dy.dim())
    for name in found.keys() - time_sums(case):
        value = found[name]
        mate = truth.REVERSE_NAMES.get(name, name.removesuffix("_b"))
        assert_same_bits(value, exchanged(back["y"]) if name == "y" else back[mate if mate in back else name], name)


@LAYOUTS
@pytest.mark.parametrize("length", [1, 7, 16, 33])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_padding_is_neutral(direction, length, layout, compiled_backend):
    """Steps of softplus(-200 + bias) = 0 behind a sequence, which then keeps its bits, as does the state it leaves."""
    case = Case(direction=direction, length=length, layout=layout, channels=18, states=5, initial=True, last=True)
    padded = dataclasses.replace(case, length=length + 9)
    (inputs, (dy, dlast)), (others, (other_dy, _)) = (
        (c.inputs(device_of(compiled_backend)), c.output_gradients(device_of(compiled_backend))) for c in (case, padded)
    )
    at = slice(0, length) if direction == "forward" else slice(9, None)
    for name in ("u", "delta", "z", "B", "C"):
        padding = others[name].fill_(-200) if name == "delta" else others[name]
        padding[:, :, at] = inputs[name]
    other_dy.zero_()[:, :, at] = dy
    wanted = run(inputs, case, compiled_backend, dy, dlast)
    found = run(others, padded, compiled_backend, other_dy, dlast)
    for name in found.keys() - time_sums(case) - {"B", "C"}:  # what is no sum over steps or channels
        value = found[name] if name in ("last_state", "initial_state") else found[name][:, :, at]
        assert_same_bits(value, wanted[name], name)


@LAYOUTS
def test_mean_is_half_the_sum(layout, backend):
    case = Case(layout=layout)
    total = run_case(case, backend)["y"]
    assert_same_bits(run_case(dataclasses.replace(case, merge="mean"), backend)["y"], total * 0.5)


def test_none_is_cat_in_two_tensors(backend):
    case = Case(merge="cat")
    assert_same_bits(run_case(dataclasses.replace(case, merge="none"), backend), run_case(case, backend))

"""Numbers at the ends of their ranges: tiny and huge steps, no decay, growth, overflow, NaN and infinity."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from . import cases, truth
from .bounds import Expected, usage
from .cases import Case
from .checks import assert_same_bits, bits, check_inputs, device_of, run

DIRECTIONS = ("forward", "reverse", "both")
LAYOUTS = pytest.mark.parametrize("layout", cases.LAYOUTS)
BASE = Case(channels=6, length=8, lanes=(5,), states=5)


def with_values(case: Case, **values) -> tuple[dict, torch.Tensor, torch.Tensor | None]:
    """The case's tensors, some of them replaced by repeating a list of values; laid out as the case says."""
    inputs = case.inputs()
    for name, row in values.items():
        x = inputs[name]
        row = torch.tensor(row, dtype=torch.float64)
        filled = row.repeat(-(-x.numel() // len(row)))[: x.numel()].reshape(x.shape).to(x.dtype)
        inputs[name] = cases.lay_out(filled, case.layout)
    return inputs, *case.output_gradients()


def on_device(values: tuple, backend: str) -> tuple:
    """Move what `with_values` made."""
    inputs, *grads = values
    device = device_of(backend)
    move = lambda x: None if x is None else x.to(device)  # noqa: E731
    return {name: move(x) for name, x in inputs.items()}, *map(move, grads)


EXTREMES = {
    "no step at all": {"softplus": False, "bias": False, "delta": [0.0]},
    "vanishing steps": {"softplus": False, "bias": False, "delta": [1e-30, 1e-38, 1e-42, 1e-10, 0.0]},
    "negative steps": {"softplus": False, "bias": False, "delta": [-0.1, 0.2, -0.3]},
    "huge steps": {"softplus": False, "bias": False, "delta": [1e2, 1e4, 1e6, 1e15]},
    "around softplus 20": {"bias": False, "delta": [19.9, 19.999998, 20.0, 20.000002, 20.1, 30.0]},
    "softplus far below": {"bias": False, "delta": [-10.0, -20.0, -60.0, -87.0, -88.0, -100.0, -104.0, -200.0, -1e30]},
    "softplus at zero": {"bias": False, "delta": [0.0, 1e-38, -1e-38, 1e-7, -1e-7]},
    "bias cancels": {"delta": [1.0, 100.0, -3.0], "delta_bias": [-1.0, -100.0, 3.0]},
    "A to zero": {"A": [-1e-30, -1e-38, -1e-10, -1e-5, 0.0]},
    "A zero": {"A": [0.0, -0.0]},
    "A growing": {"A": [0.5, 0.1, 1.0]},
    "A very strong": {"A": [-50.0, -126.0, -1000.0, -1e30]},
    "decay around the smallest normal": {
        "softplus": False,
        "bias": False,
        "delta": [1.0],
        "A": [-87.3, -87.4, -88, -103],
    },
    "gates far out": {"z": [-200.0, -104.0, -89.0, -88.0, -87.0, 50.0, 88.0, 104.0, 1e4, -1e30]},
    "large inputs": {"u": [1e15, -1e15, 1e-15]},
}


@LAYOUTS
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_stay_within_the_bounds(name, direction, layout, backend):
    settings = dict(EXTREMES[name])
    fields = {key: settings.pop(key) for key in ("softplus", "bias") if key in settings}
    case = dataclasses.replace(BASE, direction=direction, layout=layout, separate="parameters", **fields)
    inputs, dy, dlast = on_device(with_values(case, **settings), backend)
    check_inputs(inputs, case, backend, dy, dlast)


@LAYOUTS
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_exponential_itself(layout, sign, compiled_backend):
    """One step from state 1 without input and with C = 1 is y = exp(delta A): the kernel's exp2, seen from outside."""
    length_one = Case(
        direction="forward", batch=1, channels=16, length=1, lanes=(4096,), states=1, layout=layout, softplus=False,
        D=False, z=False, bias=False, initial=True,
    )  # fmt: skip
    exponents = sign * torch.linspace(0, 103 if sign < 0 else 88.7, 16 * 4096, dtype=torch.float64)
    inputs = dict.fromkeys(truth.NAMES)
    shapes = length_one.shapes()
    inputs |= {name: torch.ones(shape) for name, shape in shapes.items()}
    inputs["u"] = torch.zeros(shapes["u"])
    inputs["delta"] = exponents.reshape(shapes["delta"]).abs().float()
    inputs["A"] = torch.full(shapes["A"], float(sign))
    inputs = {name: None if x is None else cases.lay_out(x, layout) for name, x in inputs.items()}
    expected = Expected(inputs, length_one.options)
    device = device_of(compiled_backend)
    moved = {name: None if x is None else x.to(device) for name, x in inputs.items()}
    y = run(moved, length_one, compiled_backend, torch.ones_like(moved["u"]))["y"]
    used = usage(y, expected.numbers["y"], torch.float32)
    assert used.max() <= 1, f"exp({exponents[used.argmax()]:.6g}) has {used.max():.3g} of its bound"


@LAYOUTS
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_states_beyond_float16(direction, layout, backend):
    """|h| > 65,504 with outputs in range: float16 storage never holds a state. Outputs out of range are infinite."""
    case = dataclasses.replace(BASE, direction=direction, layout=layout, dtype=torch.float16, separate="parameters")
    inputs, dy, dlast = with_values(case, u=[3e4, 6e4, 1e4], B=[30.0, 50.0], C=[1e-4, 2e-4], D=[0.0], A=[-1e-3])
    dy = (dy * 1e-3).to(dy.dtype)
    if "D_b" in case.given():
        inputs["D_b"] = torch.zeros_like(inputs["D_b"])
    state = truth.run(truth.direction_of({k: None if x is None else x.double() for k, x in inputs.items()},
                                         case.options, direction == "reverse")).after  # fmt: skip
    assert state.abs().max() > 65_504
    check_inputs(*on_device((inputs, dy, dlast), backend)[:1], case, backend, *on_device(({}, dy, dlast), backend)[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@LAYOUTS
def test_overflowing_rows_leave_the_others_alone(layout, dtype, backend):
    """Rows whose output leaves the range are infinite, never finite and wrong; the rest keeps its bits."""
    case = dataclasses.replace(BASE, layout=layout, dtype=dtype, D=False, z=False)
    device = device_of(backend)
    inputs, (dy, _) = case.inputs(device), case.output_gradients(device)
    calm = run(inputs, case, backend, dy)["y"]
    limit = torch.finfo(dtype).max
    for name in ("u", "u_b"):
        inputs[name] = inputs[name].clone()
        inputs[name][:, :, :, 2] = limit / 4
        inputs["delta" if name == "u" else "delta_b"][:, :, :, 2] = 8.0
    hot = run(inputs, case, backend, dy)["y"]
    others = [0, 1, 3, 4]
    assert_same_bits(hot[..., others], calm[..., others], "rows below the limit")
    expected = Expected(inputs, case.options).numbers["y"]
    assert (expected.value[..., 2].abs() > limit).any()
    finite = torch.isfinite(hot[..., 2]).cpu()
    assert (usage(hot, expected, dtype)[..., 2][finite] <= 1).all(), "a finite value that is wrong"


@LAYOUTS
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_growth_beyond_the_range(direction, layout, backend):
    """exp(delta A) = inf: states become infinite (or NaN, as inf - inf is); no finite value is made up for them."""
    case = dataclasses.replace(
        BASE, direction=direction, layout=layout, softplus=False, bias=False, z=False, D=False, separate="shared"
    )
    inputs, dy, _ = on_device(with_values(case, delta=[30.0], A=[10.0, 5.0], B=[1.0], C=[1.0], u=[1.0]), backend)
    y = run(inputs, case, backend, dy)["y"]
    steps = range(case.length)
    late = {"forward": steps[1:], "reverse": steps[:-1], "both": steps}[direction]
    assert not torch.isfinite(y[:, :, list(late)]).any()


# -- provenance of NaN and infinity ------------------------------------------------------------------------------------

POISONED = [
    (direction, name) for direction in DIRECTIONS for name in (*Case(direction=direction, initial=True).given(), "dy")
]


def poisoned_run(case: Case, name: str, value: float, backend: str):
    """-> results without and with one element replaced, and the truth's results with it."""
    device = device_of(backend)
    inputs, (dy, dlast) = case.inputs(device), case.output_gradients(device)
    clean = run(inputs, case, backend, dy, dlast)
    target = dy if name == "dy" else inputs[name]
    place = tuple(size // 2 for size in target.shape)
    target[place] = value
    found = run(inputs, case, backend, dy, dlast)
    wide = {key: None if x is None else x.cpu().double() for key, x in inputs.items()}
    y, last = truth.scan(wide, case.options)
    wanted = {"y": y} | truth.scan_adjoint(
        wide, case.options, dy.cpu().double(), None if dlast is None else dlast.double().cpu()
    )
    if case.has_last:
        wanted["last_state"] = last
    return clean, found, wanted


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@LAYOUTS
@pytest.mark.parametrize(("direction", "name"), POISONED, ids=lambda x: x)
def test_nan_and_infinity_touch_only_what_they_must(direction, name, layout, value, compiled_backend):
    """What the truth leaves finite keeps its bits; what a NaN reaches in the truth is not finite here either."""
    case = Case(
        direction=direction, layout=layout, channels=19, length=7, lanes=(5,), states=3, initial=True, last=True
    )
    clean, found, wanted = poisoned_run(case, name, value, compiled_backend)
    for key, result in found.items():
        result, before = result.cpu(), clean[key].cpu()
        spared = torch.isfinite(wanted[key])
        # A sum over time, lanes or channels with other finite terms changes if the poisoned element enters it.
        same = bits(result) == bits(before)
        if value != value:
            reached = torch.isnan(wanted[key])
            assert not torch.isfinite(result[reached]).any(), f"{key}: the NaN of {name} was lost"
            assert same[spared].all(), f"{key}: {int((~same[spared]).sum())} elements changed that {name} cannot reach"
        else:
            lost = torch.isnan(wanted[key]) & torch.isfinite(result)
            assert not lost.any(), f"{key}: the infinity of {name} was lost"
            assert torch.isfinite(result[spared]).all(), f"{key}: not finite where {name} cannot reach"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_masked_sequences_do_not_leak(direction, compiled_backend):
    """dy = 0 at a step whose C is infinite gives NaN there, as 0 * inf is; every other sequence is untouched."""
    case = Case(direction=direction, channels=19, length=7, lanes=(5,), states=3)
    device = device_of(compiled_backend)
    inputs, (dy, _) = case.inputs(device), case.output_gradients(device)
    clean = run(inputs, case, compiled_backend, dy)
    inputs["C"][:, :, 3, 2] = torch.inf
    dy[:, :, 3, 2] = 0
    found = run(inputs, case, compiled_backend, dy)
    others = [0, 1, 3, 4]
    for name in ("y", "u", "delta", "z", "B", "C"):
        assert_same_bits(found[name][..., others], clean[name][..., others], name)

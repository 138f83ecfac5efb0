"""What kernels do to memory: every output element written, nothing else touched, any size, any stride."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from . import cases, truth
from .bounds import Expected
from .cases import Case
from .checks import assert_same_bits, bits, call, check_inputs, device_of, run, run_case

SHAPES = [
    Case(layout=layout, direction=direction, merge=merge, initial=True, last=True, dtype=dtype, **shape)
    for layout in cases.LAYOUTS
    for direction, merge in (("forward", "sum"), ("reverse", "sum"), ("both", "cat"), ("both", "sum"))
    for dtype, shape in (
        (torch.float32, {"channels": 19, "lanes": (5,), "states": 17}),
        (torch.bfloat16, {"channels": 3, "lanes": (17,), "states": 3}),
        (torch.float16, {"channels": 16, "lanes": (), "states": 8, "length": 21}),
    )
]


def by_name(case):
    return case.name


@pytest.mark.parametrize("case", SHAPES, ids=by_name)
def test_every_element_is_written(case, backend):
    """The same bits when memory from torch.empty is NaN; no NaN comes out."""
    wanted = run_case(case, backend)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all(), "memory from torch.empty is not poisoned"
    found = run_case(case, backend)
    for name, value in found.items():
        assert not torch.isnan(value).any(), f"{name} has elements that were never written"
    assert_same_bits(found, wanted)


def fenced(x: torch.Tensor, margin: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy with the same strides inside a larger buffer that holds a known pattern elsewhere -> (buffer, copy)."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    buffer = torch.full((span + 2 * margin,), 1234.5, dtype=x.dtype)
    copy = buffer.as_strided(x.shape, x.stride(), margin)
    copy.copy_(x)
    return buffer, copy


FENCED = [
    Case(layout=layout, direction=direction, channels=19, lanes=lanes, states=5, initial=True, last=True)
    for layout in (*cases.LAYOUTS, "stepped", "cropped")
    for direction in ("forward", "both")
    for lanes in ((5,), ())
]


@pytest.mark.parametrize("case", FENCED, ids=by_name)
def test_nothing_but_outputs_is_written(case, backend):
    """Inputs, and what lies around and between their elements, keep their bits and their version."""
    if device_of(backend) != "cpu":
        pytest.skip("compute-sanitizer does this on a GPU")
    buffers, inputs = {}, {}
    for name, x in case.inputs().items():
        buffers[name], inputs[name] = (None, None) if x is None else fenced(x)
    dy, dlast = case.output_gradients()
    buffers["dy"], dy = fenced(dy)
    before = {name: x.clone() for name, x in buffers.items() if x is not None}
    versions = {name: x._version for name, x in buffers.items() if x is not None}
    run(inputs, case, backend, dy, dlast)
    for name, x in before.items():
        assert torch.equal(bits(buffers[name]), bits(x)), f"{name} or memory near it was written"
        assert buffers[name]._version == versions[name], f"{name} counts a write"


@pytest.mark.parametrize("case", SHAPES[::5], ids=by_name)
@pytest.mark.parametrize("neighbour", [float("nan"), float("inf")], ids=str)
def test_memory_beside_the_inputs_is_not_used(case, neighbour, backend):
    """Values beside the elements never reach a result, not even multiplied by zero."""
    if device_of(backend) != "cpu":
        pytest.skip("compute-sanitizer does this on a GPU")
    wanted = run_case(case, backend)
    inputs = {}
    for name, x in case.inputs().items():
        if x is not None:
            buffer, copy = fenced(x)
            buffer.fill_(neighbour)
            copy.copy_(x)
            x = copy
        inputs[name] = x
    assert_same_bits(run(inputs, case, backend, *case.output_gradients()), wanted)


@pytest.mark.parametrize("case", SHAPES[::2], ids=by_name)
def test_outputs_own_their_memory(case, backend):
    """No output or gradient shares memory with an input or with another one."""
    device = device_of(backend)
    inputs, (dy, dlast) = case.inputs(device), case.output_gradients(device)
    found = run(inputs, case, backend, dy, dlast)
    owners: dict[int, str] = {}
    for name, x in {**inputs, "dy": dy, "dlast": dlast}.items():
        if x is not None:
            owners[x.untyped_storage().data_ptr()] = name
    for name, x in found.items():
        pointer = x.untyped_storage().data_ptr()
        assert pointer not in owners, f"{'d' if name in inputs else ''}{name} shares memory with {owners[pointer]}"
        owners[pointer] = f"d{name}" if name in inputs else name


# -- sizes -------------------------------------------------------------------------------------------------------------

EMPTY = {
    "batch": {"batch": 0},
    "channels": {"channels": 0},
    "length": {"length": 0},
    "lanes": {"lanes": (0,)},
    "second lane axis": {"lanes": (3, 0)},
    "states": {"states": 0},
}


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
@pytest.mark.parametrize("form", ["shared", "constant"])
@pytest.mark.parametrize("what", EMPTY)
def test_size_zero_in_every_axis(what, form, direction, backend):
    """Empty outputs of the right shape, and gradients that are zero, not uninitialised memory."""
    case = Case(direction=direction, B_form=form, C_form=form, initial=True, last=True, **EMPTY[what])
    device = device_of(backend)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    inputs, (dy, dlast) = case.inputs(device), case.output_gradients(device)
    found = run(inputs, case, backend, dy, dlast)
    assert found["y"].shape == inputs["u"].shape
    if what == "states":  # y = D u silu(z), which the truth computes as it stands
        check_inputs(inputs, case, backend, dy, dlast)
        return
    for name in case.given():
        wanted = torch.zeros_like(inputs[name])
        if what == "length" and name == "initial_state":
            wanted = dlast
        assert_same_bits(found[name], wanted, f"d{name}")
    if what == "length" and case.has_last:
        assert_same_bits(found["last_state"], inputs["initial_state"], "last state after no step")


LIMITS = [
    {"batch": 257, "lanes": (255,)},  # 65,535
    {"batch": 256, "lanes": (16, 16)},  # 65,536
    {"batch": 65_537, "lanes": ()},
    {"batch": 1, "lanes": (65_537,)},
    {"batch": 1, "channels": 65_537, "lanes": ()},
    {"batch": 65_537, "channels": 1, "lanes": (), "length": 1},
]


LIMITED = [(shape, layout) for shape in LIMITS for layout in cases.LAYOUTS]
LIMITED.append(({"batch": 4, "lanes": (256, 256)}, "lanes"))  # 262,144, once


def name_of_limit(value) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


@pytest.mark.parametrize(("shape", "layout"), LIMITED, ids=name_of_limit)
def test_many_sequences(shape, layout, compiled_backend):
    """Sizes at which grids, 16-bit counters and the paper's own default break."""
    case = Case(**{"channels": 2, "length": 2, "states": 1, "layout": layout, "separate": "shared"} | shape)
    device = device_of(compiled_backend)
    truth_of = Expected(case.inputs(), case.options, *case.output_gradients())
    for name, value in run(case.inputs(device), case, compiled_backend, *case.output_gradients(device)).items():
        used = (value.cpu().double() - truth_of.numbers[name].value).abs() / truth_of.numbers[name].error
        assert used.max() <= 1, f"{name}: {used.max():.3g} of its bound"


# -- strides -----------------------------------------------------------------------------------------------------------

STRIDED = [
    (name, axis) for name in ("u", "delta", "z", "B", "C", "dy") for axis in ("batch", "channels", "length", "lanes")
]


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize(("name", "axis"), STRIDED, ids=lambda x: x)
@pytest.mark.parametrize("reach", cases.REACHES)
def test_offsets_beyond_32_bits(reach, name, axis, direction, compiled_backend):
    """One tensor whose last element along one axis lies so far out; results as with the dense tensor."""
    if compiled_backend != "cpu":
        pytest.skip("a GPU needs the real memory: see the large shapes of its own suite")
    case = Case(
        direction=direction, dtype=torch.bfloat16, channels=3, length=3, lanes=(5,), states=2, separate="shared"
    )  # fmt: skip
    inputs, (dy, _) = case.inputs(), case.output_gradients()
    dense = dy if name == "dy" else inputs[name]
    view = cases.far(dense, ("batch", "channels", "length", "lanes").index(axis), cases.REACHES[reach])
    if name == "dy":
        dy = view
    else:
        inputs = inputs | {name: view}
    found = run(inputs, case, compiled_backend, dy)
    truth_of = Expected(case.inputs(), case.options, case.output_gradients()[0])
    for key, value in found.items():
        truth_of.check(key, value)


@pytest.mark.parametrize("merge", ["sum", "cat"])
def test_results_do_not_depend_on_earlier_calls(merge, compiled_backend):
    """Scratch memory that a larger call leaves behind is not read by a smaller one."""
    case = Case(merge=merge, channels=5, length=4, states=3)
    wanted = run_case(case, compiled_backend)
    large = dataclasses.replace(case, channels=67, length=150, states=40, lanes=(33,))
    device = device_of(compiled_backend)
    inputs = {name: None if x is None else torch.full_like(x, torch.nan) for name, x in large.inputs(device).items()}
    run(inputs, large, compiled_backend, large.output_gradients(device)[0])
    assert_same_bits(run_case(case, compiled_backend), wanted)


def test_the_call_leaves_no_graph_behind_without_gradients(backend):
    """Nothing is saved for backward when no input asks for a gradient."""
    case = Case()
    y, _ = call(case.inputs(device_of(backend)), case, backend)
    assert y.grad_fn is None and not y.requires_grad
    assert set(truth.NAMES) >= set(case.given())

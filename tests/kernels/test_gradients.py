"""Gradients of every input in every direction: by finite differences, by the adjoint identity, only where needed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ssmvdm_kernels import ops

from . import cases, truth
from .bounds import Expected
from .cases import Case
from .checks import assert_same_bits, call, device_of, expected, operator_arguments, operators_of, run_case

F64 = torch.float64


def by_name(case):
    return case.name


def small(case: Case) -> Case:
    """The same options at a size where finite differences are quick."""
    return dataclasses.replace(
        case,
        dtype=F64,
        batch=min(case.batch, 1 + (case.length < 3)),
        channels=2,
        length=min(case.length, 3),
        lanes=tuple(min(n, 2) for n in case.lanes[:1]),
        states=min(case.states, 2),
    )


GRADCHECKED = list(
    dict.fromkeys(small(case) for case in (*cases.pairs(), *cases.triples()[::8]) if case.layout != "expanded")
)
TWICE = list(dict.fromkeys(dataclasses.replace(case, batch=1, length=2) for case in GRADCHECKED[::3]))


def function_of(case: Case, backend: str):
    names = case.given()

    def function(*tensors):
        y, last = call(dict(zip(names, tensors, strict=True)), case, backend)
        return y if last is None else (y, last)

    inputs = case.inputs()
    return function, tuple(inputs[name].detach().requires_grad_() for name in names)


@pytest.mark.parametrize("configurations", [GRADCHECKED, TWICE], ids=["gradcheck", "gradgradcheck"])
def test_configurations_have_every_tensor(configurations):
    assert {name for case in configurations for name in case.given()} == set(truth.NAMES)


@pytest.mark.parametrize("case", GRADCHECKED, ids=by_name)
def test_gradcheck(case, backend):
    if device_of(backend) != "cpu":
        pytest.skip("float64 is computed on the CPU only")
    assert torch.autograd.gradcheck(*function_of(case, backend))


@pytest.mark.parametrize("case", TWICE, ids=by_name)
def test_gradgradcheck_of_the_reference(case):
    assert torch.autograd.gradgradcheck(*function_of(case, "reference"))


@pytest.mark.parametrize("case", cases.core(), ids=by_name)
def test_adjoint_identity(case, backend):
    """<v, J w> = <J^T v, w>, J w from the truth in float64, J^T v from the backend; the bound is that of J^T v."""
    truth_of = expected(case)
    found = run_case(case, backend)
    inputs = {name: x.double() for name, x in case.inputs().items() if x is not None}
    names = tuple(inputs)
    generator = torch.Generator().manual_seed(11)
    w = {name: torch.randn(inputs[name].shape, generator=generator, dtype=F64) for name in names}
    if case.layout == "expanded":  # an expanded tensor's elements are separate variables
        inputs = {name: x.contiguous() for name, x in inputs.items()}
    dy, dlast = case.output_gradients()
    (_, _), (Jw, Jw_last) = torch.func.jvp(
        lambda *x: truth.scan(dict(zip(names, x, strict=True)), case.options),
        tuple(inputs[name] for name in names),
        tuple(w[name] for name in names),
    )
    left = (dy.double() * Jw).sum() + (0 if dlast is None else (dlast.double() * Jw_last).sum())
    right = sum((found[name].cpu().double() * w[name]).sum() for name in names)
    allowed = sum((truth_of.numbers[name].error * w[name].abs()).sum() for name in names)
    assert (left - right).abs() <= allowed


def operator_call(case: Case, needs: int, backend: str):
    """scan_backward as autograd calls it, asking for the inputs whose bits are set."""
    device = device_of(backend)
    dy, dlast = case.output_gradients(device)
    return operators_of(backend).scan_backward(dy, dlast, *operator_arguments(case, device, False), needs)


ONLY = [
    Case(layout=layout, direction=direction, initial=True, last=True, B_form=form, C_form=form)
    for layout in cases.LAYOUTS
    for direction, form in (("forward", "shared"), ("reverse", "groups"), ("both", "shared"), ("both", "constant"))
]


@pytest.mark.parametrize("case", ONLY, ids=by_name)
def test_only_what_is_needed_is_computed(case, compiled_backend):
    """One bit gives one gradient, with the bits it has among all of them; everything else is empty."""
    everything = operator_call(case, (1 << len(truth.NAMES)) - 1, compiled_backend)
    given = case.given()
    for index, name in enumerate(truth.NAMES):
        found = operator_call(case, 1 << index, compiled_backend)
        for other, gradient in zip((*truth.NAMES, "y"), found, strict=True):
            if other != name or name not in given:
                assert gradient.shape == (0,), f"asked for {name} only, but d{other} was computed"
        if name in given:
            assert_same_bits(found[index], everything[index], f"d{name} alone")
    assert all(gradient.shape == (0,) for gradient in operator_call(case, 0, compiled_backend))
    *gradients, y = operator_call(case, ops.NEEDS_Y, compiled_backend)
    assert all(gradient.shape == (0,) for gradient in gradients)
    y_forward, _ = call(case.inputs(device_of(compiled_backend)), case, compiled_backend)
    assert_same_bits(y, y_forward, "y of the forward pass")


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_inputs_without_gradient_get_none(direction, backend):
    case = Case(direction=direction, initial=True, last=True)
    inputs = case.inputs(device_of(backend))
    for name in case.given():
        leaves = {k: None if x is None else x.detach().requires_grad_(k == name) for k, x in inputs.items()}
        y, _ = call(leaves, case, backend)
        y.sum().backward()
        assert [k for k, x in leaves.items() if x is not None and x.grad is not None] == [name]
        assert not torch.isnan(leaves[name].grad).any()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_loss_of_the_last_state_alone(direction, backend):
    """y unused: its gradient never exists, and the gradients are those of dy = 0."""
    case = Case(direction=direction, initial=True, last=True)
    dy, dlast = case.output_gradients()
    truth_of = Expected(case.inputs(), case.options, torch.zeros_like(dy), dlast)
    leaves = {k: None if x is None else x.requires_grad_() for k, x in case.inputs(device_of(backend)).items()}
    _, last = call(leaves, case, backend)
    last.backward(dlast.to(last.device))
    for name in case.given():
        gradient = leaves[name].grad
        truth_of.check(name, torch.zeros_like(leaves[name]) if gradient is None else gradient)


@pytest.mark.parametrize("merge", ["sum", "cat"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_gradient_of_a_sum_is_an_expanded_tensor(layout, merge, backend):
    """The gradient of .sum() has stride 0 in every axis."""
    case = Case(layout=layout, merge=merge)
    dy = torch.ones(case.output_gradients()[0].shape)
    truth_of = Expected(case.inputs(), case.options, dy)
    leaves = {k: None if x is None else x.requires_grad_() for k, x in case.inputs(device_of(backend)).items()}
    call(leaves, case, backend)[0].sum().backward()
    for name in case.given():
        truth_of.check(name, leaves[name].grad)


# The limit for dA at strong decay; a h_before recovered as h - d u B has 22 % at -16 and 97 % at -20.
STRONG_DECAY_LIMIT = 1e-5


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_dA_per_state_at_strong_decay(layout, direction, backend):
    """delta A = -2 .. -20, one per state; all terms positive, so that nothing cancels."""
    exponents = torch.tensor([-2.0, -4.0, -8.0, -12.0, -16.0, -20.0])
    case = Case(
        direction=direction, layout=layout, batch=2, channels=5, length=12, lanes=(3,), states=len(exponents),
        softplus=False, bias=False, D=False, z=False, separate="shared",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    inputs = dict.fromkeys(truth.NAMES)
    for index, (name, shape) in enumerate(case.shapes().items()):
        value = 0.5 + torch.rand(shape, generator=generator)
        value = torch.ones(shape) if name == "delta" else exponents.expand(shape) if name == "A" else value
        inputs[name] = cases.lay_out(value.contiguous(), layout, index)
    dy = 0.5 + torch.rand(case.output_gradients()[0].shape, generator=generator)
    wide = {name: None if x is None else x.double() for name, x in inputs.items()}
    wanted = truth.scan_adjoint(wide, case.options, dy.double())["A"]
    device = device_of(backend)
    leaves = {name: None if x is None else x.to(device).requires_grad_() for name, x in inputs.items()}
    call(leaves, case, backend)[0].backward(dy.to(device))
    relative = (leaves["A"].grad.cpu().double() - wanted).abs() / wanted.abs()
    worst = relative.amax(0)
    assert (worst <= STRONG_DECAY_LIMIT).all(), dict(zip(exponents.tolist(), worst.tolist(), strict=True))

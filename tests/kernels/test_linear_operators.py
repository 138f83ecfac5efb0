"""What the convolution and the S4D scan have in common: they are linear in their sequence, and read it as it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from . import cases, test_conv, test_s4d
from .checks import assert_same_bits, device_of


@dataclass(frozen=True)
class Operator:
    """inputs: by name, from a dtype; run: outputs and gradients by name, from inputs, dy and a backend."""

    inputs: Callable[[torch.dtype], dict[str, Tensor]]
    run: Callable[[dict[str, Tensor], Tensor, str], dict[str, Tensor]]
    sequences: tuple[str, ...]  # what it is linear in


def convolved(inputs: dict[str, Tensor], dy: Tensor, backend: str) -> dict[str, Tensor]:
    return test_conv.run_conv(inputs, (dy, dy), None, backend)


def scanned(inputs: dict[str, Tensor], dy: Tensor, backend: str) -> dict[str, Tensor]:
    return test_s4d.run(inputs, "sum", dy, backend)


OPERATORS = {
    "conv": Operator(
        lambda dtype: test_conv.tensors((1, 18, 9, 5), 4, dtype, "lanes", True, True, "cpu"), convolved, ("x",)
    ),
    "s4d, direct": Operator(lambda dtype: test_s4d.made((1, 18, 9, (5,), 3), dtype), scanned, ("u", "u_b")),
    "s4d, recurrence": Operator(lambda dtype: test_s4d.made((1, 18, 27, (5,), 2), dtype), scanned, ("u", "u_b")),
}
OUTPUTS = ("y", "y_b")


def with_gradient(operator: Operator, dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs, and "dy"."""
    inputs = operator.inputs(dtype)
    shape = inputs[operator.sequences[0]].shape
    return inputs | {"dy": torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)}


def results(operator: Operator, tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """On the backend's device, which keeps strides."""
    placed = {name: x.to(device_of(backend)) for name, x in tensors.items()}
    dy = placed.pop("dy")
    return operator.run(placed, dy, backend)


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor], operator: Operator, moved: str) -> None:
    """Bits. Where sequences lie decides the order in which the gradients of parameters are added."""
    each = {*OUTPUTS, *operator.sequences, "z"} & found.keys()
    exact = each if moved in operator.sequences else found.keys()
    assert_same_bits({n: found[n] for n in exact}, {n: wanted[n] for n in exact}, f"{moved} elsewhere")
    for name in found.keys() - exact:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5, msg=f"{name}, {moved} elsewhere")


@pytest.mark.parametrize("layout", cases.ODD_LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_tensor_lies_anyhow(name, layout, compiled_backend):
    operator = OPERATORS[name]
    dense = with_gradient(operator, torch.float32)
    for index, moved in enumerate(dense):
        odd = cases.lay_out(dense[moved], layout, index)
        found, wanted = (results(operator, dense | {moved: x}, compiled_backend) for x in (odd, odd.contiguous()))
        compare(found, wanted, operator, moved)


@pytest.mark.parametrize("axis", range(1, 4))
@pytest.mark.parametrize("reach", ["2^31", "2^32+24"])
@pytest.mark.parametrize("name", OPERATORS)
def test_offsets_beyond_32_bits(name, reach, axis, compiled_backend):
    if compiled_backend != "cpu":
        pytest.skip("a GPU needs the real memory: see the large shapes of its own suite")
    operator = OPERATORS[name]
    dense = with_gradient(operator, torch.bfloat16)
    wanted = results(operator, dense, compiled_backend)
    for moved in (*operator.sequences, "z", "dy"):
        if moved in dense:
            view = cases.far(dense[moved], axis, cases.REACHES[reach])
            compare(results(operator, dense | {moved: view}, compiled_backend), wanted, operator, moved)


@pytest.mark.parametrize("power", [-20, -1, 3, 20])
@pytest.mark.parametrize("name", OPERATORS)
def test_powers_of_two_pass_through(name, power, compiled_backend):
    """Scaled sequences scale outputs and gradients of parameters, a scaled dy every gradient: without a rounding."""
    operator, factor = OPERATORS[name], 2.0**power
    tensors = with_gradient(operator, torch.float32)
    tensors |= {n: torch.zeros_like(x) for n, x in tensors.items() if n.startswith(("bias", "D"))}
    wanted = results(operator, tensors, compiled_backend)
    scaled = results(operator, tensors | {n: factor * tensors[n] for n in operator.sequences}, compiled_backend)
    steady = {*operator.sequences, "bias", "bias_b"}
    assert_same_bits(scaled, {n: x if n in steady else factor * x for n, x in wanted.items()}, "sequences scaled")
    scaled = results(operator, tensors | {"dy": factor * tensors["dy"]}, compiled_backend)
    assert_same_bits(scaled, {n: x if n in OUTPUTS else factor * x for n, x in wanted.items()}, "dy scaled")

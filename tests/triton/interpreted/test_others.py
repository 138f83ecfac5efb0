"""The convolution and S4D in the interpreter, and the choice of the backend there."""

from __future__ import annotations

import pytest
import torch

import ssmvdm_kernels
from ssmvdm_kernels import explain, ops
from ssmvdm_kernels.triton_kernels import conv
from tests.kernels import cases
from tests.kernels import test_s4d as s4d
from tests.kernels.bounds import usage
from tests.kernels.checks import assert_same_bits, operators_of
from tests.kernels.test_conv import bounded, run_conv, tensors
from tests.kernels.test_torch import opcheck_convolution

CONVOLUTIONS = [  # shape, width, dtype, layout, separate, has_bias, activation, segment
    ((2, 5, 7, 3), 4, torch.float32, "lanes", True, True, "silu", 256),
    ((1, 19, 9, 6), 3, torch.float32, "channels", False, True, None, 4),
    ((3, 6, 6), 2, torch.float16, "length", True, False, "silu", 2),
    ((1, 2, 1, 2, 3), 5, torch.bfloat16, "cropped", False, True, "silu", 256),
    ((1, 34, 4), 1, torch.float32, "offset", True, True, "silu", 256),
]


@pytest.mark.parametrize(
    ("shape", "width", "dtype", "layout", "separate", "has_bias", "activation", "segment"), CONVOLUTIONS
)
def test_convolution(shape, width, dtype, layout, separate, has_bias, activation, segment, monkeypatch):
    monkeypatch.setattr(conv, "SEGMENT", segment)
    inputs = tensors(shape, width, dtype, layout, separate, has_bias, "cpu")
    dys = tuple(cases.lay_out(torch.randn(shape).to(dtype), layout) for _ in range(2))
    expected = bounded(inputs, dys, activation)
    for name, value in run_conv(inputs, dys, activation, "triton").items():
        used = usage(value, expected[name], value.dtype)
        assert used.max() <= 1, f"{name}: {used.max():.3g} of its a priori bound"


def test_convolution_on_the_tiles_of_gpus(gpu_tiles):
    inputs = tensors((2, 5, 4, 6), 3, torch.float32, "lanes", True, True, "cpu")
    dys = tuple(torch.randn(2, 5, 4, 6) for _ in range(2))
    expected = bounded(inputs, dys, "silu")
    for name, value in run_conv(inputs, dys, "silu", "triton").items():
        assert usage(value, expected[name], value.dtype).max() <= 1, name


@pytest.mark.parametrize("reverse", [False, True])
def test_convolution_in_one_direction(reverse):
    inputs = tensors((1, 3, 5, 2), 4, torch.float32, "lanes", False, True, "cpu")
    both = run_conv(inputs, (torch.zeros(1, 3, 5, 2),) * 2, "silu", "triton")
    y = ssmvdm_kernels.causal_conv1d(*list(inputs.values())[:3], reverse=reverse, backend="triton")
    assert_same_bits(y, both["y_b" if reverse else "y"])


@pytest.mark.parametrize("axis", range(4))
def test_convolution_of_nothing(axis):
    shape = [1, 3, 4, 2]
    shape[axis] = 0
    inputs = tensors(shape, 4, torch.float32, "lanes", True, True, "cpu")
    for name, value in run_conv(inputs, (torch.zeros(shape),) * 2, "silu", "triton").items():
        assert_same_bits(value, torch.zeros(shape if name in ("y", "y_b") else inputs[name].shape), name)


@pytest.mark.parametrize("merge", ("sum", "mean", "cat", "none", "forward", "reverse"))
def test_s4d_in_each_direction(merge):
    shape = (1, 5, 6, (3,), 3)
    s4d.check(s4d.made(shape, torch.float32, "channels", has_z=merge != "mean"), merge, "triton")


@pytest.mark.parametrize("has_many_channels", [False, True])
def test_s4d_on_the_tiles_of_gpus(has_many_channels, gpu_tiles, many_channels):
    """More channels than a tile has; or several tiles of sequences, launches, and a ragged length."""
    batch, lanes = (1, (6,)) if gpu_tiles == "lanes" else (2, (2,))
    shape = (1, many_channels, 2, (), 2) if has_many_channels else (batch, 3, 5, lanes, 11)
    s4d.check(s4d.made(shape, torch.float32), "sum", "triton")
    s4d.check(s4d.made(shape, torch.float16, has_reverse=False), "cat", "triton")


@pytest.mark.parametrize("merge", (0, 2))
def test_s4d_backward_can_return_the_output(merge):
    operators = operators_of("triton")
    given = s4d.real(s4d.made((1, 3, 5, (2,), 2), torch.float32))
    y = operators.s4d_forward(*given, 2, merge)
    found = operators.s4d_backward(torch.ones_like(y), *given, 2, merge, s4d.NEEDS_Y)
    assert_same_bits(found[-1], y)


@pytest.mark.parametrize("empty", range(4))
def test_s4d_of_nothing(empty):
    size = [1, 2, 3, 2]
    size[empty] = 0
    inputs = s4d.made((*size[:3], (size[3],), 2), torch.float32)
    for name, value in s4d.run(inputs, "sum", backend="triton").items():
        assert name == "y" or (value.shape == inputs[name].shape and (value == 0).all())


@pytest.mark.parametrize("direction", [ops.FORWARD, ops.BOTH], ids=["forward", "both"])
def test_opcheck_of_the_convolution(direction):
    opcheck_convolution("lanes", direction, operators_of("triton"), "cpu")


def test_opcheck_of_s4d():
    s4d.opcheck(operators_of("triton"), (1, 2, 3, (2,), 2))


def test_the_interpreter_is_never_chosen_by_itself():
    assert "triton: could, but cpu is preferred" in explain(torch.zeros(1, 2, 3))
    assert "triton" in ssmvdm_kernels.available_backends()


def test_float64_is_refused():
    text = explain(torch.zeros(1, 2, 3, dtype=torch.float64), backend="triton")
    assert "is refused" in text and "these are float64" in text


def test_the_lean_mixer_keeps_its_derivatives():
    """The module, whose formula calls the backward operators itself, on this backend and on the reference."""
    from ssmvdm_kernels import backends

    torch.manual_seed(0)
    mixer, x = ssmvdm_kernels.BidirectionalMamba(2, states=2), torch.randn(1, 2, 3, 2)
    results = []
    for name in ("triton", "cpu"):
        chosen = backends.REGISTRY[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backends, "select", lambda caller, first, requested, chosen=chosen: chosen)
            results.append(torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)

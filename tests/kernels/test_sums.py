"""Gradients of parameters are sums over time and sequences: no length makes them worse than eager sums are."""

import pytest
import torch

from . import test_conv, test_s4d
from .cases import Case
from .checks import run

LENGTH, CHANNELS = 2048, 128
EAGER_FACTOR = 2.0  # of the quality policy: error at most twice that of the same mathematics run eagerly


def scan(backend: str, dtype: torch.dtype) -> dict:
    case = Case(batch=1, channels=CHANNELS, length=LENGTH, lanes=(), states=4)
    (dy, _), inputs = case.output_gradients(), case.inputs()
    inputs = {name: None if value is None else value.to(dtype) for name, value in inputs.items()}
    return run(inputs, case, backend, dy.to(dtype))


def conv(backend: str, dtype: torch.dtype) -> dict:
    generator, shape = torch.Generator().manual_seed(0), (1, CHANNELS, LENGTH)
    inputs = test_conv.tensors(shape, 4, torch.float32, "lanes", True, True, "cpu")
    dys = tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return test_conv.run_conv({name: value.to(dtype) for name, value in inputs.items()}, dys, "silu", backend)


def s4d(backend: str, dtype: torch.dtype) -> dict:
    inputs = test_s4d.made((1, CHANNELS, LENGTH, (), 2), torch.float32)
    dy = torch.randn(1, CHANNELS, LENGTH, generator=torch.Generator().manual_seed(0))
    inputs = inputs if dtype == torch.float32 else test_s4d.wide(inputs)
    return test_s4d.run(inputs, "sum", dy.to(dtype), backend)


SUMS = {
    "scan": (scan, ("D", "delta_bias", "D_b", "delta_bias_b")),
    "conv": (conv, ("weight", "bias", "weight_b", "bias_b")),
    "s4d": (s4d, ("D", "decay", "weight", "D_b", "decay_b", "weight_b")),
}


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.to(truth.dtype) - truth).abs().square().mean().sqrt())


@pytest.mark.parametrize("name", SUMS)
def test_long_sums_err_as_eager_ones_do(name):
    made, parameters = SUMS[name]
    found, eager = made("cpu", torch.float32), made("reference", torch.float32)
    truth = made("reference", torch.float64)
    for parameter in parameters:
        assert error(found[parameter], truth[parameter]) <= EAGER_FACTOR * error(eager[parameter], truth[parameter])

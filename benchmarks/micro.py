"""Single calls with pytest-benchmark: `make bench-micro`. Forward without autograd, and backward of one forward, each
compared with the reference backend in float64 before it is timed; see `benchmarks.measure.gate` for the bounds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.rival_scans import scan_tensors
from benchmarks.measure.gate import Gate, layer_check
from ssmvdm_kernels import bidirectional_conv1d, bidirectional_selective_scan, selective_scan

SHAPES = ((64, 16, 64), (16, 64, 128))  # sequences, length, channels
STATES, WIDTH = 16, 4
CAUSAL = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

Tensors = dict[str, Tensor]


def _scan(tensors: Tensors, backend: str) -> Tensor:
    return selective_scan(*(tensors[name] for name in CAUSAL), delta_softplus=True, backend=backend)


def _bidirectional_scan(tensors: Tensors, backend: str) -> Tensor:
    return bidirectional_selective_scan(**tensors, delta_softplus=True, backend=backend)


def _convolution(tensors: Tensors, backend: str) -> Tensor:
    return torch.cat(bidirectional_conv1d(**tensors, backend=backend))


def _scan_tensors(sequences: int, length: int, channels: int, generator: torch.Generator) -> Tensors:
    tensors = scan_tensors(sequences, channels, length, STATES, generator)
    return {name: tensors[name] for name in CAUSAL}


def _bidirectional_tensors(sequences: int, length: int, channels: int, generator: torch.Generator) -> Tensors:
    return scan_tensors(sequences, channels, length, STATES, generator)


def _convolution_tensors(sequences: int, length: int, channels: int, generator: torch.Generator) -> Tensors:
    shapes = {"x": (sequences, channels, length), "weight": (channels, WIDTH), "weight_b": (channels, WIDTH)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


CALLS = {
    "selective_scan": (_scan, _scan_tensors),
    "bidirectional_selective_scan": (_bidirectional_scan, _bidirectional_tensors),
    "bidirectional_conv1d": (_convolution, _convolution_tensors),
}


def _results(run: Callable[[Tensors, str], Tensor], tensors: Tensors, backend: str, dtype: torch.dtype) -> Tensors:
    """Output and all gradients."""
    leaves = {name: value.to(dtype).requires_grad_() for name, value in tensors.items()}
    y = run(leaves, backend)
    dy = torch.linspace(-1.0, 1.0, y.numel(), dtype=dtype).view(y.shape)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"output": y.detach()} | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", CALLS)
def test_call(benchmark, name, shape, mode):
    run, make = CALLS[name]
    tensors = make(*shape, torch.Generator().manual_seed(0))
    measured = _results(run, tensors, "auto", torch.float32)
    truth, yardstick = (_results(run, tensors, "reference", dtype) for dtype in (torch.float64, torch.float32))
    gate = Gate(tuple(layer_check(key, value, truth[key], yardstick[key]) for key, value in measured.items()))
    assert gate.has_passed, gate.first_failure()

    leaves = {key: value.requires_grad_() for key, value in tensors.items()}
    y = run(leaves, "auto")
    if mode == "backward":
        benchmark(torch.autograd.grad, y, list(leaves.values()), torch.ones_like(y), retain_graph=True)
        return
    with torch.no_grad():
        benchmark(run, leaves, "auto")

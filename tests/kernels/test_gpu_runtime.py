"""What a GPU asks of a binding: the current stream, the device of the tensors, capture in graphs."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import require_backend

from .cases import Case
from .checks import assert_same_bits, operator_arguments, operators_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CASE = Case(channels=34, length=40, lanes=(17,), states=16, B_form="groups", C_form="groups", separate="all")
EVERYTHING = (1 << 17) - 1


@pytest.fixture(params=["cuda", "triton"])
def backend(request) -> str:
    return require_backend(request.param)


def step(backend: str, arguments: tuple, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """y and everything that the backward operator returns."""
    operators = operators_of(backend)
    y, _ = operators.scan_forward(*arguments, False)
    gradients = operators.scan_backward(dy, None, *arguments, EVERYTHING)
    return {"y": y} | {str(index): gradient for index, gradient in enumerate(gradients)}


def call_on(device: str) -> tuple[tuple, torch.Tensor]:
    return operator_arguments(CASE, device, False), CASE.output_gradients(device)[0]


def test_kernels_wait_for_what_the_current_stream_still_produces(backend):
    arguments, dy = call_on("cuda")
    wanted = step(backend, arguments, dy)
    late = torch.zeros_like(arguments[0])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second, in which any other stream would read zeros
        late.copy_(arguments[0])
        found = step(backend, (late, *arguments[1:]), dy)
    stream.synchronize()
    assert_same_bits(found, wanted)


def test_a_captured_graph_computes_on_new_values(backend):
    arguments, dy = call_on("cuda")
    u = arguments[0].clone()
    step(backend, (u, *arguments[1:]), dy)  # what is done once per process cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    u.zero_()
    with torch.cuda.graph(graph):
        found = step(backend, (u, *arguments[1:]), dy)
    u.copy_(arguments[0])
    graph.replay()
    assert_same_bits(found, step(backend, arguments, dy))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_kernels_run_on_the_device_of_the_tensors(backend):
    wanted = step(backend, *call_on("cuda:0"))
    with torch.cuda.device(0):
        found = step(backend, *call_on("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(tensor.device.index == 1 for tensor in found.values())
    assert_same_bits({name: tensor.to("cuda:0") for name, tensor in found.items()}, wanted)

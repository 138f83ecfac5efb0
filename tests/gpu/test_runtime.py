"""Graphs, streams, devices and repetition: what only shows where a GPU runs behind the host."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import require_backend
from tests.kernels import cases
from tests.kernels.cases import Case
from tests.kernels.checks import assert_same_bits, bits, run, run_case

from .device import each_backend, needs_gpu

pytestmark = needs_gpu
LATE_CYCLES = 200_000_000  # of the device: about a tenth of a second, in which the host has long gone on
REPETITIONS = 200
each_layout = pytest.mark.parametrize("layout", cases.LAYOUTS)


def reduced(layout: str) -> Case:
    """One with every kind of gradient that is a sum over sequences, channels or time."""
    return Case(layout=layout, batch=3, channels=70, length=33, states=16, lanes=(37,), B_form="groups",
                C_form="groups", B_b_form="constant")  # fmt: skip


@each_backend
@each_layout
def test_graph_capture(layout, name):
    """Forward and backward in one graph; a replay computes from what the inputs hold then."""
    backend = require_backend(name)
    case = reduced(layout)
    inputs, (dy, _) = case.inputs("cuda"), case.output_gradients("cuda")
    wanted = run(inputs, case, backend, dy)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(inputs, case, backend, dy)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = run(inputs, case, backend, dy)
    given = {key: x for key, x in inputs.items() if x is not None}
    kept = {key: x.clone() for key, x in given.items()}
    for x in given.values():
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert not found["y"].any(), "a replay with u = 0 has y = 0"
    for key, x in given.items():
        x.copy_(kept[key])
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(found, wanted, "replay")


@each_backend
@each_layout
def test_a_late_producer_on_another_stream(layout, name):
    """Inputs are written on the stream that the call is made on, long after the call has returned."""
    backend = require_backend(name)
    case = reduced(layout)
    inputs, (dy, _) = case.inputs("cuda"), case.output_gradients("cuda")
    wanted = run(inputs, case, backend, dy)
    late = {key: None if x is None else torch.empty_like(x) for key, x in inputs.items()}
    late_dy = torch.empty_like(dy)
    stream = torch.cuda.Stream()

    def produce_and_run(cycles: int) -> tuple[dict, bool]:
        """The results, and whether the host came here before them."""
        for x in (late_dy, *late.values()):
            if x is not None:
                x.fill_(torch.nan)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(cycles)
            for key, x in inputs.items():
                if x is not None:
                    late[key].copy_(x)
            late_dy.copy_(dy)
            found = run(late, case, backend, late_dy)
            is_ahead = not stream.query()
        torch.cuda.synchronize()
        return found, is_ahead

    produce_and_run(1)  # what is loaded at its first use waits for the device
    found, is_ahead = produce_and_run(LATE_CYCLES)
    assert is_ahead, "the producer was done before the call returned: this test saw nothing"
    assert_same_bits(found, wanted, "on another stream")


@each_backend
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two CUDA devices are needed")
def test_the_current_device_is_another_one(name):
    backend = require_backend(name)
    case = reduced("lanes")
    inputs, (dy, _) = case.inputs("cuda:1"), case.output_gradients("cuda:1")
    with torch.cuda.device(1):
        wanted = run(inputs, case, backend, dy)
    with torch.cuda.device(0):
        found = run(inputs, case, backend, dy)
        assert torch.cuda.current_device() == 0
    assert {x.device.index for x in found.values()} == {1}
    assert_same_bits(found, wanted, "from another device")


@each_backend
@each_layout
def test_the_same_bits_time_after_time(layout, name):
    """While another stream keeps part of the device busy, so that blocks run in another order each time."""
    backend = require_backend(name)
    case = reduced(layout)
    wanted = run_case(case, backend)
    inputs, (dy, _) = case.inputs("cuda"), case.output_gradients("cuda")
    other, noise = torch.cuda.Stream(), torch.rand(512, 512, device="cuda")
    other.wait_stream(torch.cuda.current_stream())
    wanted_bits = {key: bits(x) for key, x in wanted.items()}
    differences = torch.zeros(len(wanted), dtype=torch.int64, device="cuda")
    for _ in range(REPETITIONS):
        with torch.cuda.stream(other):
            noise = torch.sin(noise @ noise)
        found = run(inputs, case, backend, dy)
        differences += torch.stack([(bits(found[key]) != wanted_bits[key]).sum() for key in wanted])
    assert not differences.any(), dict(zip(wanted, differences.tolist(), strict=True))

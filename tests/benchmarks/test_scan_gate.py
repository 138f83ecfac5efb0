"""The scan benchmark's gate: rivals are right, and what is wrong, theirs or ours, is caught."""

from dataclasses import replace

import pytest
import torch

from benchmarks.kernels import rival_scans, rivals
from benchmarks.kernels.scan_case import gate_ours, gate_replay, gate_rival, our_tensors, run_ours
from benchmarks.kernels.scan_options import LAYOUTS, RIVALS
from benchmarks.kernels.shapes import Shape
from tests.conftest import require_backend


def made(rival, length, sequences=3):
    channels = 128 if rival.name.startswith("sdpa") else 8
    tensors = rival.make(sequences, channels, length, 4, torch.Generator().manual_seed(0))
    return {name: value.requires_grad_() for name, value in tensors.items()}


ON_CPU = [rival for rival in rivals.all_rivals() if "cpu" in RIVALS[rival.name]]
CHEAP = [rival for rival in ON_CPU if rival.name != "compiled"]


@pytest.mark.parametrize("length", [2, 5, 16, 33])
@pytest.mark.parametrize("rival", CHEAP, ids=lambda rival: rival.name)
def test_rivals_compute_what_they_claim(rival, length):
    gate = gate_rival(rival, made(rival, length))
    assert gate.has_passed, gate.first_failure()


@pytest.mark.parametrize("rival", CHEAP, ids=lambda rival: rival.name)
def test_a_rival_that_is_wrong_is_caught(rival):
    wrong = replace(rival, run=lambda tensors: rival.run(tensors) * 1.01)
    assert not gate_rival(wrong, made(rival, 16)).has_passed


def test_the_compiled_rival_is_right():
    """With code generation, which is wrong where it makes vector code."""
    rival = next(rival for rival in rivals.all_rivals() if rival.name == "compiled")
    gate = gate_rival(rival, made(rival, 3, sequences=4))
    assert gate.has_passed, gate.first_failure()


def test_the_parallel_scan_is_the_recurrence():
    generator = torch.Generator().manual_seed(1)
    for length in (1, 2, 3, 4, 7, 8, 13, 17):
        decay = torch.rand(2, 3, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        drive = torch.randn(2, 3, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        h, steps = torch.zeros(2, 3, 4, dtype=torch.float64), []
        for t in range(length):
            h = decay[:, :, t] * h + drive[:, :, t]
            steps.append(h)
        parallel = rival_scans.ParallelScan.apply(decay, drive)
        assert torch.allclose(parallel, torch.stack(steps, 2), rtol=1e-12, atol=1e-13)
        assert torch.autograd.gradcheck(rival_scans.ParallelScan.apply, (decay, drive))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_gate_passes_in_every_layout(layout, dtype):
    require_backend("cpu")
    tensors = our_tensors(Shape(12, 16, 9, 4), dtype, layout)
    expected = {"video": (1, 16, 9, 12)}.get(layout, (12, 16, 9))
    assert tensors["u"].shape == expected
    assert tensors["u"].stride(1 if layout == "channels-last" else -1) == 1
    gate = gate_ours(tensors, layout)
    assert gate.has_passed, gate.first_failure()


class Wrong(torch.autograd.Function):
    """Returns what it is given, and no gradient where there are many sequences."""

    @staticmethod
    def forward(ctx, x, is_many):
        ctx.is_many = is_many
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        return (torch.zeros_like(dx) if ctx.is_many else dx), None


def test_gradients_of_parameters_are_checked_on_all_sequences():
    require_backend("cpu")

    def without_their_gradients(tensors):
        wrong = {name: Wrong.apply(tensors[name], len(tensors["u"]) > 16) for name in ("A", "D", "delta_bias")}
        return run_ours(tensors | wrong)

    tensors = our_tensors(Shape(64, 8, 16, 4), torch.float32, "channels-last")
    assert gate_ours(tensors, "channels-last").has_passed
    assert gate_ours(tensors, "channels-last", without_their_gradients).first_failure().startswith("A: ")


def test_sequences_between_the_first_and_the_last_are_checked():
    require_backend("cpu")

    def without_those_between(tensors):
        y = run_ours(tensors)
        return torch.cat([y[:4], 0.0 * y[4:-4], y[-4:]])

    tensors = our_tensors(Shape(64, 8, 16, 4), torch.float32, "channels-last")
    assert not gate_ours(tensors, "channels-last", without_those_between).has_passed


def test_a_gradient_that_leaks_into_other_sequences_is_caught():
    require_backend("cpu")

    def leaking(tensors):
        return run_ours(tensors) + 1e-9 * tensors["z"].roll(1, 0)

    tensors = our_tensors(Shape(64, 8, 16, 4), torch.float32, "channels-last")
    assert "elsewhere" in gate_ours(tensors, "channels-last", leaking).first_failure()


@pytest.mark.parametrize("rival", CHEAP, ids=lambda rival: rival.name)
def test_gradients_of_rivals_are_checked_on_all_sequences(rival):
    tensors = made(rival, 16, sequences=12)

    def without_gradients(tensors):
        is_many = len(tensors[rival.per_sequence[0]]) > 4
        return rival.run({name: Wrong.apply(value, is_many) for name, value in tensors.items()})

    assert gate_rival(rival, tensors).has_passed
    assert not gate_rival(replace(rival, run=without_gradients), tensors).has_passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_has_to_write_what_the_call_returned(dtype):
    called = {"y": torch.linspace(-3.0, 3.0, 50).to(dtype), "A": torch.ones(4)}
    rounded = called | {"A": called["A"] + 1e-6}
    assert gate_replay(called, rounded).has_passed
    gate = gate_replay(called, called | {"A": torch.zeros(4)})
    assert gate.first_failure() == "A, replayed: 1, allowed 0.000122"
    assert not gate_replay(called, called | {"y": called["y"].roll(1)}).has_passed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_gate_catches_a_wrong_row_and_a_wrong_gradient(layout):
    require_backend("cpu")
    tensors = our_tensors(Shape(12, 16, 9, 4), torch.float32, layout)
    assert not gate_ours(tensors, layout, lambda tensors: run_ours(tensors) * (1 + 1e-4)).has_passed

    def without_bias_gradient(tensors):
        y = run_ours(tensors | {"delta_bias": tensors["delta_bias"].detach()})
        return y + 0.0 * tensors["delta_bias"].sum()

    assert "delta_bias" in gate_ours(tensors, layout, without_bias_gradient).first_failure()

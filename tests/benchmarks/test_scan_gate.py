"""The scan benchmark's gate: rivals are right, and what is wrong, theirs or ours, is caught."""

from dataclasses import replace

import pytest
import torch

from benchmarks.kernels import rival_scans, rivals
from benchmarks.kernels.scan_case import gate_ours, gate_rival, our_tensors, run_ours
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_gate_catches_a_wrong_row_and_a_wrong_gradient(layout):
    require_backend("cpu")
    tensors = our_tensors(Shape(12, 16, 9, 4), torch.float32, layout)
    assert not gate_ours(tensors, layout, lambda tensors: run_ours(tensors) * (1 + 1e-4)).has_passed

    def without_bias_gradient(tensors):
        y = run_ours(tensors | {"delta_bias": tensors["delta_bias"].detach()})
        return y + 0.0 * tensors["delta_bias"].sum()

    assert "delta_bias" in gate_ours(tensors, layout, without_bias_gradient).first_failure()

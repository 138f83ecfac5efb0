"""The scan benchmark: rivals are right, wrong ones are caught, ratios are of interleaved runs."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.kernels import rivals
from benchmarks.kernels.scan_case import Shape, gate_ours, gate_rival, our_tensors, run_ours
from benchmarks.kernels.scan_options import ScanOptions
from benchmarks.measure import timing
from tests.conftest import require_backend

LAYOUTS = ("video", "channels-last", "length-contiguous")


def made(rival, length, sequences=3):
    channels = 128 if rival.name.startswith("sdpa") else 8
    tensors = rival.make(sequences, channels, length, 4, torch.Generator().manual_seed(0))
    return {name: value.requires_grad_() for name, value in tensors.items()}


@pytest.mark.parametrize("length", [2, 5, 16, 33])
@pytest.mark.parametrize("rival", rivals.RIVALS, ids=lambda rival: rival.name)
def test_rivals_compute_what_they_claim(rival, length):
    gate = gate_rival(rival, made(rival, length))
    assert gate.has_passed, gate.first_failure()


@pytest.mark.parametrize("rival", rivals.RIVALS, ids=lambda rival: rival.name)
def test_a_rival_that_is_wrong_is_caught(rival):
    from dataclasses import replace

    wrong = replace(rival, run=lambda tensors: rival.run(tensors) * 1.01)
    assert not gate_rival(wrong, made(rival, 16)).has_passed


def test_the_parallel_scan_is_the_recurrence():
    generator = torch.Generator().manual_seed(1)
    for length in (1, 2, 3, 4, 7, 8, 13, 17):
        decay = torch.rand(2, 3, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        drive = torch.randn(2, 3, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        h, steps = torch.zeros(2, 3, 4, dtype=torch.float64), []
        for t in range(length):
            h = decay[:, :, t] * h + drive[:, :, t]
            steps.append(h)
        assert torch.allclose(rivals.ParallelScan.apply(decay, drive), torch.stack(steps, 2), rtol=1e-12, atol=1e-13)
        assert torch.autograd.gradcheck(rivals.ParallelScan.apply, (decay, drive))


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


def test_candidates_take_turns_and_a_slow_one_stops_after_its_budget():
    order = []

    def slow():
        order.append("slow")
        while timing.once(lambda: None) > 1.0:
            pass

    samples = timing.interleaved({"slow": slow, "fast": lambda: order.append("fast")}, rounds=5, budget_seconds=0.0)
    assert order[:6] == ["slow", "fast"] * 3
    assert [value is None for value in samples["slow"]] == [False] * 3 + [True] * 2
    assert timing.ratio([2.0, None, 6.0, 9.0], [1.0, 1.0, 2.0, None]) == 2.5
    assert timing.middle([None, 3.0, 1.0, 2.0]) == 2.0


def run_python(*arguments):
    """stdout of a process of its own, because the benchmark changes how its process allocates."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_kept_and_reused():
    code = """if True:
        import torch
        from benchmarks.measure import process_memory
        assert process_memory.keep_freed_memory()
        before = process_memory.resident_bytes()
        torch.ones(2**26)  # 256 MiB, freed at once
        print(process_memory.resident_bytes() - before)
    """
    assert int(run_python("-c", code)) >= 2**28


def test_the_whole_benchmark_on_a_small_shape(tmp_path):
    require_backend("cpu")
    arguments = ["--sequences", "16", "--lengths", "4", "8", "--channels", "16", "--states", "4", "--threads", "1", "2"]
    arguments += ["--rounds", "3", "--budget-seconds", "0.2", "--out", str(tmp_path)]
    printed = run_python("-m", "ssmvdm.cli", "bench", "scan", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.json", "scan.md"]
    result = json.loads((tmp_path / "scan.json").read_text())
    assert {row["name"] for row in result["rivals"]} == {rival.name for rival in rivals.RIVALS}
    for row in result["rivals"] + result["ours"]:
        assert row["status"] == "ok", (row["name"], row["detail"])
        assert row["ratio"] > 0.0
        assert row["gate"]["passed"]
    assert len(result["scaling"]) == 4
    candidates = ("ours", "s4d-fft", "s4d-scan")
    expected = [(length, candidate) for length in (4, 8) for candidate in candidates]
    assert [(row["length"], row["candidate"]) for row in result["memory"]] == expected
    text = (tmp_path / "scan.md").read_text()
    assert text in printed
    assert "Peak memory" in text and "S4D by scan and by FFT" in text


def test_defaults_are_valid():
    ScanOptions().check()

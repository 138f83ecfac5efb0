"""What a measurement is told of memory: really on the CPU, and what is asked of torch for a GPU."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks.measure.meter import meter_of

MIB = 2**20


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.parametrize("is_exact", [True, False])
def test_the_peak_on_a_cpu_is_that_of_memory_in_use_since_the_mark(is_exact):
    code = """if True:
        import sys
        import torch
        from benchmarks.measure.meter import meter_of
        meter = meter_of("cpu")
        meter.be_exact()
        if sys.argv[1] == "False":
            meter.be_fast()
        torch.ones(50 * 2**20)  # before the mark: not in the peak
        meter.release()
        assert meter.reset_peak()
        before = meter.in_use()
        for mib in (1, 2, 3):  # 90 MiB at a time, in blocks of which no larger one can be made
            held = [torch.ones(mib * 2**18 - 2**10 * part) for part in (1, 2) for _ in range(45 // mib)]
            between = [torch.ones(2**10) for _ in range(10)]
            del held[::2]
            more = [torch.ones(mib * 2**18) for _ in range(40 // mib)]
            del held, more
        print(meter.in_use() - before, meter.peak() - before)
    """
    # In a process of its own, whose way to allocate it changes.
    found = subprocess.run([sys.executable, "-c", code, str(is_exact)], capture_output=True, text=True, check=True)
    in_use, peak = map(int, found.stdout.split())
    if is_exact:
        assert in_use < 5 * MIB
        assert peak == pytest.approx(90 * MIB, rel=0.1)
    else:  # what is freed and kept counts as well
        assert peak > 110 * MIB


def test_on_a_gpu_it_is_the_allocators(monkeypatch):
    asked = []
    state = {
        "memory_allocated": 3 * MIB,
        "max_memory_allocated": 7 * MIB,
        "memory_reserved": 10 * MIB,
        "current_device": 0,
    }
    for name, value in state.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    properties = SimpleNamespace(total_memory=100 * MIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, name=name: asked.append((name, *given)))
    meter = meter_of("cuda")
    meter.release()
    meter.limit_further(15 * MIB)
    meter.limit_further(500 * MIB)
    assert meter.reset_peak()
    meter.finish()
    assert (meter.in_use(), meter.peak()) == (3 * MIB, 7 * MIB)
    assert asked == [
        ("empty_cache",), ("set_per_process_memory_fraction", 0.25), ("set_per_process_memory_fraction", 1.0),
        ("reset_peak_memory_stats",), ("synchronize",),
    ]  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_kept_and_reused():
    code = """if True:
        import torch
        from ssmvdm import process_memory
        assert process_memory.keep_freed_memory()
        before = process_memory.resident_bytes()
        torch.ones(2**26)  # 256 MiB, freed at once
        print(process_memory.resident_bytes() - before)
    """
    # In a process of its own, whose way to allocate it changes.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) >= 2**28

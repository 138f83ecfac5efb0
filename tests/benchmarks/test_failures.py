"""What a measurement that raised is called, and that none outlives its run."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from benchmarks.measure.failures import failure

ROOT = Path(__file__).parents[2]
NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("aoti_torch_empty_strided( sizes, strides ) API call failed at ./csrc/tensors.h, line 98"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_whatever_has_no_memory_left_is_out_of_memory(error):
    found = failure(error)
    assert found["status"] == "out of memory"
    assert found["detail"].startswith("an allocation failed: ")


def test_other_errors_have_their_own_names(capsys):
    assert failure(NotImplementedError("no gradient")) == {"status": "not applicable", "detail": "no gradient"}
    assert failure(RuntimeError("shapes differ\nby one")) == {
        "status": "error",
        "detail": "RuntimeError: shapes differ",
    }
    assert "RuntimeError: shapes differ" in capsys.readouterr().err


KILLED = """
    import multiprocessing, threading, time
    from benchmarks.measure.children import call_child
    network = {"base_channels": 8, "size": 8, "channel_mults": [1, 2], "heads": 1}
    request = {"task": "training", "layer": "bi-s6", "frames": 64, "network": network, "device": "cpu", "threads": 1,
               "repeats": 10**6, "seconds": 300.0, "memory_limit_bytes": None}
    if __name__ == "__main__":
        threading.Thread(target=call_child, args=(request,), daemon=True).start()
        while not multiprocessing.active_children():
            time.sleep(0.1)
        time.sleep(1.0)
        print(multiprocessing.active_children()[0].pid, flush=True)
        time.sleep(60.0)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked for in Linux's /proc")
def test_a_measurement_ends_with_the_run_that_waits_for_it(tmp_path):
    (tmp_path / "killed.py").write_text(textwrap.dedent(KILLED))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, tmp_path / "killed.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        pid = int(run.stdout.readline())
        assert is_running(pid)
        run.kill()
    deadline = time.monotonic() + 30.0
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)

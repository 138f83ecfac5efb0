"""The same bits from run to run, for any number of threads, under racing Python threads, and in a forked child."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from . import cases
from .cases import Case
from .checks import assert_same_bits, run_case


def by_name(case):
    return case.name


# Few and many sequences for the threads to share, shared and summed gradients, one case that is a single sequence.
SHAPES = [
    Case(layout=layout, direction=direction, states=16, initial=True, last=True, **shape)
    for layout in cases.LAYOUTS
    for direction in ("forward", "both")
    for shape in (
        {"batch": 1, "channels": 70, "lanes": ()},
        {"batch": 1, "channels": 3, "lanes": (1,)},
        {"batch": 17, "channels": 260, "lanes": ()},
        {"batch": 3, "channels": 35, "lanes": (37,)},
        {"batch": 2, "channels": 16, "lanes": (64,), "B_form": "constant", "C_form": "constant"},
        {"batch": 5, "channels": 18, "lanes": (3, 3), "B_form": "groups", "C_form": "groups", "dtype": torch.bfloat16},
    )
]


@pytest.mark.parametrize("case", SHAPES, ids=by_name)
def test_any_number_of_threads(case, compiled_backend):
    torch.set_num_threads(1)
    wanted = run_case(case, compiled_backend)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert_same_bits(run_case(case, compiled_backend), wanted, f"{threads} threads")


@pytest.mark.parametrize("case", cases.core(), ids=by_name)
def test_run_to_run(case, backend):
    wanted = run_case(case, backend)
    for _ in range(3):
        assert_same_bits(run_case(case, backend), wanted)


def test_eight_python_threads(compiled_backend):
    """Different calls at the same time, again and again: scratch memory of one must not be seen by another."""
    several = cases.core()[:8]
    wanted = [run_case(case, compiled_backend) for case in several]

    def work(k):
        for repeat in range(6):
            index = (k + repeat) % len(several)
            assert_same_bits(run_case(several[index], compiled_backend), wanted[index], several[index].name)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, k) for k in range(8)]:
            future.result(timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork exists on POSIX systems only")
def test_fork_after_use(compiled_backend):
    """A child forked after the kernels ran computes the same bits, as a DataLoader worker would: with one thread."""
    if compiled_backend != "cpu":
        pytest.skip("CUDA cannot be used in a forked child")
    program = """
        import os, signal
        import torch
        from tests.kernels.cases import Case
        from tests.kernels.checks import assert_same_bits, run_case

        torch.set_num_threads(2)
        case = Case(channels=35, lanes=(37,))
        wanted = run_case(case, "cpu")
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            torch.set_num_threads(1)
            try:
                assert_same_bits(run_case(case, "cpu"), wanted)
            except BaseException as error:
                print(error, flush=True)
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert_same_bits(run_case(case, "cpu"), wanted)
        raise SystemExit(f"the child ended with status {status}" if status else 0)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stdout + found.stderr

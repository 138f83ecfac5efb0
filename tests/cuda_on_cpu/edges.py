"""Edge shapes of the kernels that walk columns (columns.cuh), and what their tests ask of a job."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from . import build, calls, suite, worker
from .memory import elements, span_of

LENGTHS = (*range(1, 10), 16, 17, 33, 64, 65, 257)
CHANNELS = (1, 3, 31, 32, 33, 64, 130)
LANES = ((), (1,), (31,), (32,), (33,), (3, 22))
LAYOUTS = ("lanes", "length", "channels")


def storage(number: int) -> torch.dtype:
    """Every type in turn."""
    return suite.STORAGE[number % len(suite.STORAGE)]


def sizes(length: int = 9, channels: int = 3) -> list[tuple[int, int, tuple[int, ...]]]:
    """(length, channels, lanes), each at its edges while the others stay."""
    return list(
        itertools.chain(
            ((n, channels, (5,)) for n in LENGTHS),
            ((length, n, (2,)) for n in CHANNELS),
            ((length, channels, lanes) for lanes in LANES),
        )
    )


def failures(mode: str, kernel: str, checks: list[suite.Check]) -> list[str]:
    """What is wrong with any of the checks in a build of the kernels, in words."""
    jobs = [check.job for check in checks]
    if mode == "fast":
        outcomes = [calls.run(build.harness(mode, kernel), job) for job in jobs]
    else:
        outcomes = worker.run_elsewhere(mode, kernel, jobs)
    return [
        f"{check.job.name}: {problem}"
        for check, outcome in zip(checks, outcomes, strict=True)
        for problem in check.problems(outcome)
    ]


def results(check: suite.Check, needs: tuple[str, ...] | None = None, **machine) -> dict[str, Tensor]:
    """What a job computes, compared with no truth; `machine` changes the device it runs on."""
    job = check.job
    job = dataclasses.replace(job, needs=needs, machine=dataclasses.replace(job.machine, **machine))
    outcome = calls.run(build.harness("fast", job.kernel), job)
    assert not outcome.problems, outcome.problems
    return check.tensors(outcome)


def tensors_of(check: suite.Check, changes: Callable[[str, np.ndarray], np.ndarray]) -> suite.Check:
    """The same check on other inputs: changes(name, array) -> array."""
    inputs = {name: x if x is None else changes(name, x) for name, x in check.job.inputs.items()}
    return dataclasses.replace(check, job=dataclasses.replace(check.job, inputs=inputs))


def flipped(x: np.ndarray) -> np.ndarray:
    """A sequence with its time reversed, in the same layout."""
    return x[:, :, ::-1].copy(order="K")


def placed(x: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """The values of x with these strides, in elements."""
    view = elements(np.zeros(span_of(x.shape, strides), x.dtype), 0, x.shape, strides)
    view[...] = x
    return view


needs_emulator = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

"""The memory that jobs run in notices what a kernel must not do; kernels here are Python functions."""

from __future__ import annotations

import ctypes
import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.kernels.cases import Case

from . import calls, suite, worker
from .memory import FENCE, Memory, dense_strides, element_strides

CASE = Case(direction="forward", batch=2, channels=3, length=4, lanes=(5,), states=2, layout="narrowed")
JOB = suite.scan(CASE, backward=False).job


class Machine:
    """Stands in for the compiled module: its scan is `kernel`, given the arrays u and y."""

    def __init__(self, kernel):
        self.kernel, self.atomics = kernel, 0

    def configure(self, *_):
        pass

    def counters(self):
        return {"atomics": self.atomics}

    def scan_forward(self, arguments):
        self.kernel(self, arguments["dir"][0]["u"], arguments["y"][0])


def beside(x: np.ndarray, elements: int) -> ctypes.Array:
    """The float that lies so far from the first one of x."""
    return (ctypes.c_float * 1).from_address(x.ctypes.data + x.itemsize * elements)


def right(machine, u, y):
    y[...] = u


def writes_past_the_end(machine, u, y):
    y[...] = u
    beside(y, y.size)[0] = 0


def writes_before_the_start(machine, u, y):
    y[...] = u
    beside(y, -1)[0] = 0


def leaves_one_out(machine, u, y):
    y[...] = u
    y[1, 2, 3, 4] = np.frombuffer(b"\xff" * 4, np.float32)[0]


def writes_an_input(machine, u, y):
    y[...] = u
    u[0, 0, 0, 0] += 1


def writes_between_the_inputs(machine, u, y):
    y[...] = u
    beside(u, u[0].size)[0] = 0


def adds_atomically(machine, u, y):
    y[...] = u
    machine.atomics = 3


def fails(machine, u, y):
    raise RuntimeError("threads wait for one another for ever")


@pytest.mark.parametrize(("kernel", "words"), [
    (writes_past_the_end, "memory beside y was written"),
    (writes_before_the_start, "memory beside y was written"),
    (leaves_one_out, r"y[1, 2, 3, 4] was never written"),
    (writes_an_input, "u or memory beside it was written"),
    (writes_between_the_inputs, "u or memory beside it was written"),
    (adds_atomically, "3 atomic accesses"),
    (fails, "scan_forward: threads wait for one another for ever"),
], ids=lambda x: getattr(x, "__name__", ""))  # fmt: skip
def test_misuse_is_reported(kernel, words):
    outcome = calls.run(Machine(kernel), JOB)
    assert len(outcome.problems) == 1 and words in outcome.problems[0]


def test_a_right_kernel_has_no_problems():
    outcome = calls.run(Machine(right), JOB)
    assert outcome.problems == () and outcome.is_complete
    assert np.array_equal(outcome.outputs["y"], JOB.inputs["u"])


@pytest.mark.parametrize("layout", ["lanes", "channels", "narrowed", "stepped", "offset", "expanded"])
def test_inputs_keep_strides_alignment_and_nothing_beside_them(layout):
    x = suite.scan(dataclasses.replace(CASE, layout=layout, dtype=torch.float16), backward=False).job.inputs["u"]
    memory = Memory(FENCE)
    placed = memory.input("u", x)
    assert element_strides(placed) == element_strides(x)
    assert placed.ctypes.data % 16 == x.ctypes.data % 16
    assert np.array_equal(placed, x)
    (array,) = memory.arrays
    assert np.isnan(array.memory[~array.is_element]).all() and (~array.is_element).sum() >= 2 * FENCE


def test_outputs_are_laid_out_as_the_binding_does():
    assert dense_strides((1, 2, 3), (4, 5, 6)) == (1, 4, 20)
    assert dense_strides((0, 9, 9), (4, 5, 6)) == (1, 24, 4)


def test_jobs_survive_the_way_to_another_process(tmp_path):
    worker.save_jobs(tmp_path, [JOB, dataclasses.replace(JOB, needs=("u",))])
    descriptions = json.loads((tmp_path / "jobs.json").read_text())
    with np.load(tmp_path / "jobs.npz") as memory:
        again = [worker.load_job(description, memory, i) for i, description in enumerate(descriptions)]
    assert again[1].needs == ("u",) and again[0].machine == JOB.machine and again[0].options == JOB.options
    for name, x in JOB.inputs.items():
        y = again[0].inputs[name]
        assert (x is None and y is None) or (np.array_equal(x, y) and element_strides(x) == element_strides(y)), name


def test_a_sanitizer_s_report_is_summed_up():
    text = "x.cuh:3:9: runtime error: signed integer overflow\n  #1 0x7f in f scan.cuh:12\n  #2 0x7f in g run.cu:7\n"
    assert worker.summary(text) == "runtime error: signed integer overflow; x.cuh:3 < scan.cuh:12 < run.cu:7"
    assert worker.summary("Traceback (most recent call last)") == ""

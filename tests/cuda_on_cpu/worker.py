"""Jobs in a process of their own, for builds that end the process when they find something.

python -m tests.cuda_on_cpu.worker FOLDER MODE MODULE FIRST: runs the jobs in FOLDER from number FIRST on. It imports no
torch, so that nothing but the kernels is watched.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from . import build
from .calls import Job, Machine, Outcome, run
from .memory import ALIGNMENT, FENCE, element_strides, elements, span_of


def run_elsewhere(mode: str, kernel: str, jobs: list[Job]) -> list[Outcome]:
    """The outcome of each job; one that ends its process has the sanitizer's words as its problem."""
    module = build.harness_path(mode, kernel)
    environment = os.environ | (build.sanitizer_environment() if mode == "asan" else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_jobs(folder, jobs)
        outcomes: list[Outcome] = []
        while len(outcomes) < len(jobs):
            command = [sys.executable, "-m", __name__, name, mode, str(module), str(len(outcomes))]
            result = subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True)
            while len(outcomes) < len(jobs) and (folder / f"{len(outcomes)}.json").exists():
                outcomes.append(load_outcome(folder, len(outcomes)))
            if len(outcomes) < len(jobs):
                ending = f"the process ended with {result.returncode}: {result.stderr[-2000:]}"
                outcomes.append(Outcome({}, (summary(result.stderr) or ending,), {}, False))
        return outcomes


def summary(text: str) -> str:
    """What the sanitizer found, and the innermost places in kernels."""
    found = re.findall(r"(AddressSanitizer: .*|runtime error: .*)", text)
    places = re.findall(r"([\w.]+\.cuh?:\d+)", text)
    return "; ".join([*dict.fromkeys(found[:2]), " < ".join(dict.fromkeys(places[:4]))]) if found else ""


# -- jobs and outcomes as files ----------------------------------------------------------------------------------------


def save_jobs(folder: Path, jobs: list[Job]) -> None:
    """All arrays with their strides, and what is between their elements."""
    memory, descriptions = {}, []
    for number, job in enumerate(jobs):
        layouts: dict[str, dict | None] = {}
        for name, x in job.inputs.items():
            layouts[name] = None
            if x is not None:
                strides = element_strides(x)
                layouts[name] = {"shape": x.shape, "strides": strides, "shift": x.ctypes.data % ALIGNMENT // x.itemsize}
                memory[f"{number}/{name}"] = elements(x, 0, (span_of(x.shape, strides),), (1,))
        descriptions.append(dataclasses.asdict(dataclasses.replace(job, inputs=layouts)))
    np.savez(folder / "jobs.npz", **memory)
    (folder / "jobs.json").write_text(json.dumps(descriptions))


def load_job(description: dict, memory: np.lib.npyio.NpzFile, number: int) -> Job:
    inputs = {}
    for name, layout in description["inputs"].items():
        if layout is None:
            inputs[name] = None
            continue
        flat = memory[f"{number}/{name}"]
        shifted = np.empty(layout["shift"] + flat.size, flat.dtype)
        shifted[layout["shift"] :] = flat
        inputs[name] = elements(shifted, layout["shift"], tuple(layout["shape"]), tuple(layout["strides"]))
    needs = description["needs"]
    return Job(
        description["name"], description["kernel"], inputs, description["options"],
        Machine(**description["machine"]), None if needs is None else tuple(needs),
    )  # fmt: skip


def save_outcome(folder: Path, number: int, outcome: Outcome) -> None:
    np.savez(folder / f"{number}.npz", **{name: np.ascontiguousarray(x) for name, x in outcome.outputs.items()})
    rest = {"problems": outcome.problems, "counters": outcome.counters, "is_complete": outcome.is_complete}
    partial = folder / f"{number}.partial"
    partial.write_text(json.dumps(rest))
    partial.rename(folder / f"{number}.json")


def load_outcome(folder: Path, number: int) -> Outcome:
    rest = json.loads((folder / f"{number}.json").read_text())
    with np.load(folder / f"{number}.npz") as outputs:
        return Outcome(dict(outputs), tuple(rest["problems"]), rest["counters"], rest["is_complete"])


def main(folder: Path, mode: str, module: Path, first: int) -> None:
    harness = build.load_module("_harness", module)
    descriptions = json.loads((folder / "jobs.json").read_text())
    with np.load(folder / "jobs.npz") as memory:
        for number, description in enumerate(descriptions[first:], first):
            job = load_job(description, memory, number)
            save_outcome(folder, number, run(harness, job, 0 if mode == "asan" else FENCE))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))

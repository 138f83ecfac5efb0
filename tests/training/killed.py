"""Kills training at random instants and resumes it, until it has been killed often enough; run by test_killed.

    python -m tests.training.killed FOLDER KILLS

One process imports everything once and forks a child for each attempt. After every kill all checkpoints must be whole
and at most one interval behind the log; every finished run must have the reference's weights, moments and losses to
the bit. Prints one line of JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.utils.tensorboard

from ssmvdm import checkpoint
from ssmvdm.run_log import read_log
from ssmvdm.training import Run, train
from tests.training.tiny import same, tiny

CONFIG = tiny(steps=120, checkpoint_every=5)
LONGEST = 0.25  # of the time that the reference takes, for an attempt that is killed


def forked(folder: Path) -> int:
    """A child that trains in `folder`; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        train(CONFIG, folder, progress=False)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def attempt(folder: Path, seconds: float) -> bool:
    """Train for so long at most; whether the child was killed, not done."""
    child = forked(folder)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            assert os.waitstatus_to_exitcode(status) == 0, "training failed"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in read_log(folder / "log.jsonl")]


def check_after_kill(folder: Path) -> None:
    steps = checkpoint.step_folders(folder / "checkpoints")
    for path in steps:
        checkpoint.verify(path)
    newest = checkpoint._number(steps[0]) if steps else 0
    logged = max((step for step, _, _ in losses(folder)), default=0)
    assert logged - newest <= CONFIG.checkpoint_every, f"step {logged} was logged, {newest} is kept"


def main(folder: Path, kills: int) -> dict:
    torch.set_num_threads(1)
    Run(CONFIG, folder / "warm")  # imports what is imported late
    start = time.monotonic()
    assert not attempt(folder / "reference", 600)
    seconds = time.monotonic() - start
    reference = checkpoint.load(folder / "reference" / "checkpoints" / f"step-{CONFIG.steps}")
    draw, killed, finished = random.Random(0), 0, 0
    while killed < kills or finished == 0:
        run = folder / f"run-{finished}"
        if killed < kills and attempt(run, draw.uniform(0, LONGEST * seconds)):
            killed += 1
            check_after_kill(run)
            continue
        if killed >= kills:
            assert not attempt(run, 600)
        last = checkpoint.load(run / "checkpoints" / f"step-{CONFIG.steps}")
        assert same(last, reference), f"run {finished} has other weights than the reference"
        assert losses(run) == losses(folder / "reference"), f"run {finished} has other losses"
        finished += 1
    return {"killed": killed, "finished": finished}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))

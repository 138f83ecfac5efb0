"""Two processes on the CPU, started as a user would, train what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from ssmvdm import checkpoint
from ssmvdm.run_log import read_log
from ssmvdm.training import train
from tests.training.tiny import same, tiny

ROOT = Path(__file__).parents[2]


def test_two_processes_are_one_with_two_passes_to_the_bit(tmp_path):
    """Halves of the gradient are exact, and so is their sum in either order. That two passes are one of the doubled
    batch, to rounding, is a test of test_training."""
    config = tmp_path / "run.json"
    config.write_text(json.dumps(tiny(workers=1).to_dict()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "ssmvdm.cli", "train", str(config), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    torch.set_num_threads(1)  # as each of the two: sums are split by threads
    one = train(tiny(accumulate=2), tmp_path / "one", progress=False)
    two = tmp_path / "two" / "checkpoints" / one.name
    assert same(checkpoint.load(two), checkpoint.load(one))
    curves = [
        [(line["step"], line["examples"], line["loss"], line["gradient_norm"]) for line in read_log(run / "log.jsonl")]
        for run in (tmp_path / "one", tmp_path / "two")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 6

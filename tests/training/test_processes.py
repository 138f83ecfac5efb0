"""Two processes on the CPU, started as a user would, train what one process trains."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssmvdm import checkpoint
from ssmvdm.run_log import read_log
from ssmvdm.training import train
from ssmvdm.training_config import TrainingConfig
from tests.training.test_training import errors
from tests.training.tiny import same, tiny

ROOT = Path(__file__).parents[2]


def test_two_processes_are_one_with_two_passes_to_the_bit(tmp_path):
    """Halves of the gradient are exact, and so is their sum in either order. That two passes are one of the doubled
    batch, to rounding, is a test of test_training."""
    done = two_processes(tiny(workers=1), tmp_path / "two")
    assert done.returncode == 0, done.stderr
    torch.set_num_threads(1)  # as each of the two: sums are split by threads
    one = train(tiny(accumulate=2), tmp_path / "one", progress=False)
    assert same(checkpoint.load(tmp_path / "two" / "checkpoints" / one.name), checkpoint.load(one))
    curves = [
        [(line["step"], line["examples"], line["loss"], line["gradient_norm"]) for line in read_log(run / "log.jsonl")]
        for run in (tmp_path / "one", tmp_path / "two")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 6


def test_a_run_of_one_process_does_not_go_on_with_two(tmp_path):
    path = train(tiny(steps=1), tmp_path / "run", progress=False)
    done = two_processes(tiny(steps=2), tmp_path / "run")
    assert done.returncode != 0
    assert "ssmvdm: error: processes: the run in " in done.stderr and "has 1, " in done.stderr
    assert checkpoint.step_folders(path.parent) == [path]


SHARDED = "tests.training.sharded_on_cpu"


def test_sharded_processes_are_one_of_the_doubled_batch_to_rounding(tmp_path):
    """First gradients as in test_training; the curve departs from that of one process with two passes by no more than
    twice what one process with the doubled batch does, each value having been rounded to float32 in both. Adam rounds
    a part otherwise than a whole."""
    torch.set_num_threads(1)
    for steps in (1, 6):
        done = two_processes(tiny(steps=steps, sharded=True), tmp_path / "sharded", SHARDED)
        assert done.returncode == 0, done.stderr
        train(tiny(steps=steps, accumulate=2), tmp_path / "passes", progress=False)
        train(tiny(steps=steps, batch=4), tmp_path / "doubled", progress=False)
        if steps == 1:
            found = errors(*(tmp_path / name / "checkpoints" / "step-1" for name in ("passes", "sharded")))
            assert max(found) <= 2 * min(found)
    passes, doubled, sharded = (curve(tmp_path / name) for name in ("passes", "doubled", "sharded"))
    assert torch.equal(sharded[0, 0], passes[0, 0]) and len(sharded) == 6
    rounding = torch.finfo(torch.float32).eps * len(passes) ** 0.5
    far, allowed = (((other - passes) / passes).norm(dim=0) for other in (sharded, doubled))
    assert (far <= 2 * allowed + rounding).all()


def test_a_sharded_run_goes_on_to_the_bit_sharded_or_not(tmp_path):
    config = tiny(sharded=True, sample_every=3, steps=2)
    straight, stopped, other = (tmp_path / name for name in ("straight", "stopped", "other"))
    for steps, run in ((4, straight), (2, stopped)):
        done = two_processes(replace(config, steps=steps), run, SHARDED)
        assert done.returncode == 0, done.stderr
    shutil.copytree(stopped, other)
    for is_sharded, steps, run in ((True, 4, stopped), (False, 3, other), (True, 4, other)):
        module = SHARDED if is_sharded else "ssmvdm.cli"
        done = two_processes(replace(config, steps=steps, sharded=is_sharded), run, module)
        assert done.returncode == 0, done.stderr
    last = Path("checkpoints", "step-4")
    assert same(checkpoint.load(straight / last), checkpoint.load(stopped / last))
    # The loss of step 3 is that of the weights that were handed over.
    assert torch.equal(curve(straight)[:3, 0], curve(other)[:3, 0]) and len(curve(other)) == 4
    sheets = [(run / "samples" / "step-3.gif").read_bytes() for run in (straight, stopped)]
    assert sheets[0] == sheets[1]


def curve(run: Path) -> torch.Tensor:
    """(steps, 2): loss and norm of the gradient."""
    lines = read_log(run / "log.jsonl")
    return torch.tensor([(line["loss"], line["gradient_norm"]) for line in lines], dtype=torch.float64)


def test_sharded_is_an_error_where_accelerate_would_leave_it_out(tmp_path):
    with pytest.raises(ValueError, match="sharded: needs several processes with a GPU each, and this is a run of 1 on"):
        train(tiny(sharded=True), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [{"compile": True}, {"precision": "bf16"}])
def test_sharded_with_what_it_does_not_go_with_is_an_error(other):
    with pytest.raises(ValueError, match="sharded: needs compile False and precision fp32"):
        tiny(sharded=True, **other)


def two_processes(config: TrainingConfig, out: Path, module: str = "ssmvdm.cli") -> subprocess.CompletedProcess:
    path = out.with_suffix(".json")
    path.write_text(json.dumps(config.to_dict()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", module, "train", str(path), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

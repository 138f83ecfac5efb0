"""Two processes on the CPU, started as a user would, train what one process trains."""

import json
import os
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sharded_processes_are_one_with_two_passes_to_the_bit(tmp_path, precision):
    """Stopped and resumed on the way, by the other kind of run too; and their samples are the same file. Only the norm
    of the gradient is summed in another order: n terms of one sign, each rounded at most n times in either order."""
    torch.set_num_threads(1)
    alone, changes = tiny(accumulate=2, precision=precision, sample_every=3), {"accumulate": 1, "sharded": True}
    one = train(alone, tmp_path / "one", progress=False)
    for steps in (2, 4):
        done = two_processes(replace(alone, steps=steps, **changes), tmp_path / "two", "tests.training.sharded_on_cpu")
        assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "two" / "checkpoints" / "step-4").config.sharded
    sharded = checkpoint.load(tmp_path / "two" / "checkpoints" / "step-4")
    assert same(sharded, checkpoint.load(tmp_path / "one" / "checkpoints" / "step-4"))
    numel = sum(value.numel() for value in sharded.model.values())
    for ours, theirs in zip(read_log(tmp_path / "one" / "log.jsonl"), read_log(tmp_path / "two" / "log.jsonl")):
        assert [ours[key] for key in ("step", "examples", "loss")] == [theirs[key] for key in ("step", "examples", "loss")]
        allowed = numel * torch.finfo(torch.float32).eps * ours["gradient_norm"]
        assert abs(ours["gradient_norm"] - theirs["gradient_norm"]) <= allowed
    assert (tmp_path / "one/samples/step-3.gif").read_bytes() == (tmp_path / "two/samples/step-3.gif").read_bytes()


def test_sharded_is_an_error_where_accelerate_would_leave_it_out(tmp_path):
    with pytest.raises(ValueError, match="sharded: needs several processes with a GPU each, and this is a run of 1 on"):
        train(tiny(sharded=True), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [{"compile": True}, {"precision": "fp16"}])
def test_sharded_with_what_it_does_not_go_with_is_an_error(other):
    with pytest.raises(ValueError, match="sharded: needs compile False and precision fp32 or bf16"):
        tiny(sharded=True, **other)


def two_processes(config: TrainingConfig, out: Path, module: str = "ssmvdm.cli") -> subprocess.CompletedProcess:
    path = out.with_suffix(".json")
    path.write_text(json.dumps(config.to_dict()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", module, "train", str(path), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

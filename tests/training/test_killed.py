"""A run that is killed at any instant and resumed has the weights of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def kill(folder: Path, kills: int) -> dict:
    command = [sys.executable, "-m", "tests.training.killed", str(folder), str(kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_50_kills_change_no_bit(tmp_path):
    assert kill(tmp_path, 50)["killed"] == 50


@pytest.mark.slow
def test_500_kills_change_no_bit(tmp_path):
    assert kill(tmp_path, 500)["killed"] == 500

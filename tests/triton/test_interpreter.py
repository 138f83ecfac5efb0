"""Runs the tests in `interpreted`: Triton decides once per process, when kernels are defined, who is to run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


def run(*options: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options, str(FOLDER)]
    found = subprocess.run(command, cwd=FOLDER.parents[2], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]


def test_in_the_interpreter():
    run()


@pytest.mark.slow
def test_in_the_interpreter_at_length():
    run("-m", "slow")

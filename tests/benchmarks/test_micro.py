"""The single calls of `make bench-micro`, each once: they pass their gates, and nothing is timed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


def test_every_call_passes_its_gate():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable"]
    found = subprocess.run([*command, "benchmarks/micro.py"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert re.search(r"^12 passed in", found.stdout, re.MULTILINE), found.stdout  # 3 operators, 2 shapes, 2 modes

"""The C++ kernels under sanitizers: memory and undefined behaviour at the suite's edges, and threads that race.

Slow for what it compiles: `make test-sanitized`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.cuda_on_cpu import build
from tests.mutants.planted import MUTANTS

from . import sanitized
from .test_isa import ISAS, require_isa

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sanitized.missing() is not None, reason=str(sanitized.missing())),
]
PADDING = next(mutant for mutant in MUTANTS if mutant.name == "cpu: padding not neutral")


def watched(library, isa: str, word: str = "") -> subprocess.CompletedProcess:
    environment = os.environ | build.sanitizer_environment() | {"SSMVDM_CPU_ISA": isa}
    command = [sys.executable, "-m", sanitized.__name__, str(library), word]
    return subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_beside_tensors_and_no_undefined_behaviour(isa):
    require_isa(isa)
    found = watched(sanitized.library(), isa)
    assert found.returncode == 0, found.stderr[-3000:]
    name, count = found.stdout.split()
    assert name == isa and int(count) > 1000


def test_a_planted_read_beyond_a_tensor_is_seen():
    found = watched(sanitized.library(PADDING), "baseline", "torch.float32")
    assert found.returncode != 0
    assert re.search(r"AddressSanitizer: heap-buffer-overflow", found.stderr), found.stderr[-3000:]
    assert re.search(r"rows\.h:\d+", found.stderr)


def raced(*arguments: str) -> subprocess.CompletedProcess:
    command = [str(sanitized.racing()), *arguments]
    options = {"capture_output": True, "text": True, "env": os.environ | {"TSAN_OPTIONS": "exitcode=66"}}
    found = subprocess.run(command, **options)
    if "unexpected memory mapping" in found.stderr:  # of addresses as random as recent systems make them
        found = subprocess.run(["setarch", "-R", *command], **options)
    return found


def test_threads_do_not_race():
    found = raced()
    assert found.returncode == 0, found.stderr[:3000]


def test_a_planted_race_is_seen():
    found = raced("overlapping")
    assert found.returncode == 66 and "data race" in found.stderr, found.stderr[:3000]

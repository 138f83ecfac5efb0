"""Stages: commands with time limits, whose outcome is noted while the others go on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

GRACE_S = 15.0  # between the request to stop and the order; pytest-xdist gives its workers ten seconds
TAIL_LINES = 40


@dataclass(frozen=True)
class Stage:
    """obstacle: why it cannot run here, which skips it. verdicts: patterns in the output of a command that did not pass
    and what they mean: that it found only then that it cannot run ("skipped"), or ended itself in time ("timed out").
    environment: variables besides the process's own."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    obstacle: str | None = None
    verdicts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """status: passed | failed | timed out | skipped. detail: why skipped, or the last line of the output; tail: its end
    where it is needed to see what happened."""

    name: str
    status: str
    seconds: float
    detail: str
    command: str
    tail: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        return self.status in ("passed", "skipped")

    def as_json(self) -> dict:
        return asdict(self)


# Side by side are chains, each of which runs its stages one after the other; phases follow one another.
Chain = tuple[Stage, ...]
Phase = tuple[Chain, ...]


def run_stage(stage: Stage, logs: Path) -> Outcome:
    """Run one command, its output in `logs`/<name>.log."""
    command = " ".join(stage.command)
    if stage.obstacle is not None:
        return Outcome(stage.name, "skipped", 0.0, stage.obstacle, command)
    log = logs / f"{stage.name.replace(' ', '-')}.log"
    started = time.monotonic()
    with log.open("w") as output:
        try:
            process = subprocess.Popen(
                stage.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(stage.name, "failed", 0.0, f"it could not be started: {error}", command)
        status = _wait(process, stage.limit_s)
    lines = log.read_text(errors="replace").splitlines()
    detail = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    if status != "passed":
        for pattern, verdict in stage.verdicts.items():
            line = next((line.strip() for line in lines if re.search(pattern, line)), None)
            if line is not None:
                status, detail = verdict, line if verdict == "skipped" else detail
    tail = () if status == "passed" else tuple(lines[-TAIL_LINES:])
    return Outcome(stage.name, status, time.monotonic() - started, detail, command, tail)


def _wait(process: subprocess.Popen, limit_s: float) -> str:
    """Past its limit a command gets an interrupt, so that it can say how far it came; then it is killed with all that
    it has started."""
    try:
        return "passed" if process.wait(limit_s) == 0 else "failed"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "timed out"


def run_phases(
    phases: Iterable[Phase], logs: Path, note: Callable[[Outcome], None], total_s: float
) -> list[Outcome]:
    """Every stage, whatever became of the ones before, while there is time; note(outcome) as each ends."""
    logs.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + total_s
    outcomes: list[Outcome] = []

    def run_chain(chain: Chain) -> None:
        for stage in chain:
            left = end - time.monotonic() - GRACE_S
            if left > 0 or stage.obstacle is not None:
                outcome = run_stage(replace(stage, limit_s=min(stage.limit_s, left)), logs)
            else:
                outcome = Outcome(stage.name, "timed out", 0.0, "no time was left for it", " ".join(stage.command))
            outcomes.append(outcome)
            note(outcome)

    for phase in phases:
        with ThreadPoolExecutor(len(phase)) as pool:
            for future in [pool.submit(run_chain, chain) for chain in phase]:
                future.result()
    return outcomes


def longest_s(phases: Iterable[Phase]) -> float:
    """What all of it takes if every stage takes as long as it may."""
    return sum(max(sum(stage.limit_s for stage in chain) for chain in phase) for phase in phases)


def python(*arguments: str) -> tuple[str, ...]:
    """A command of this interpreter."""
    return (sys.executable, *arguments)

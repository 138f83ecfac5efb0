"""Stages: commands with time limits, whose outcome is noted while the others go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

GRACE_S = 10.0  # between the request to stop and the order
TAIL_LINES = 40


@dataclass(frozen=True)
class Stage:
    """obstacle: why it cannot run here, which skips it. unsupported: a pattern in the output of a command that found
    only then that it cannot run here. environment: variables besides the process's own."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    obstacle: str | None = None
    unsupported: str | None = None


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
    unsupported = stage.unsupported and next((line for line in lines if re.search(stage.unsupported, line)), None)
    if status != "passed" and unsupported:
        status, detail = "skipped", f"not supported here: {unsupported.strip()}"
    tail = () if status == "passed" else tuple(lines[-TAIL_LINES:])
    return Outcome(stage.name, status, time.monotonic() - started, detail, command, tail)


def _wait(process: subprocess.Popen, limit_s: float) -> str:
    """Past its limit a command and its children get an interrupt, so that they can say how far they came."""
    try:
        return "passed" if process.wait(limit_s) == 0 else "failed"
    except subprocess.TimeoutExpired:
        for request, grace in ((signal.SIGINT, GRACE_S), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, request)
                process.wait(grace)
                break
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                break
        process.wait()
        return "timed out"


def run_phases(phases: Iterable[Phase], logs: Path, note: Callable[[Outcome], None]) -> list[Outcome]:
    """Every stage, whatever became of the ones before; note(outcome) as each ends."""
    logs.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []

    def run_chain(chain: Chain) -> None:
        for stage in chain:
            outcome = run_stage(stage, logs)
            outcomes.append(outcome)
            note(outcome)

    for phase in phases:
        with ThreadPoolExecutor(len(phase)) as pool:
            for future in [pool.submit(run_chain, chain) for chain in phase]:
                future.result()
    return outcomes


def longest_s(phases: Iterable[Phase]) -> float:
    """What all of it can take at most, but for the seconds of grace."""
    return sum(max(sum(stage.limit_s for stage in chain) for chain in phase) for phase in phases)


def python(*arguments: str) -> tuple[str, ...]:
    """A command of this interpreter."""
    return (sys.executable, *arguments)

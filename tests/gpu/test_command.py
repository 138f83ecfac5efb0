"""The command behind `make test-gpu`, with commands of its own in place of the real ones: no GPU is needed."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.kernels.scan_options import LAYOUTS
from ssmvdm_kernels import available_backends
from tests.conftest import require_backend
from tests.kernels import test_conv, test_s4d

from . import __main__ as command
from . import compiled, sanitized, stages
from .stages import Outcome, Stage, longest_s, python, run_phases, run_stage


def code(text: str, name: str = "stage", limit_s: float = 60.0, **fields) -> Stage:
    return Stage(name, python("-c", text), limit_s, **fields)


def test_a_stage_that_passes_says_its_last_line(tmp_path):
    text = "import os; print('first'); print(os.environ['WORD']); print()"
    found = run_stage(code(text, environment={"WORD": "last"}), tmp_path)
    assert (found.status, found.detail, found.tail) == ("passed", "last", ())
    assert (tmp_path / "stage.log").read_text() == "first\nlast\n\n"


def test_a_stage_that_fails_shows_its_end(tmp_path):
    text = "import sys; [print(i) for i in range(100)]; print('why', file=sys.stderr); sys.exit(3)"
    found = run_stage(code(text), tmp_path)
    assert (found.status, found.detail, found.tail[-1], len(found.tail)) == ("failed", "why", "why", stages.TAIL_LINES)
    assert not found.is_good


def test_a_command_that_is_not_there_fails(tmp_path):
    found = run_stage(Stage("gone", ("no-such-program",), 5), tmp_path)
    assert found.status == "failed" and "no-such-program" in found.detail


def test_an_obstacle_skips_without_starting_anything(tmp_path):
    found = run_stage(code("open('started', 'w')", obstacle="There is none."), tmp_path)
    assert (found.status, found.detail, found.is_good) == ("skipped", "There is none.", True)
    assert not list(tmp_path.iterdir())


def test_what_a_tool_does_not_support_is_skipped_only_if_it_failed(tmp_path):
    says = "print('Error: Device not supported'); "
    pattern = {"verdicts": {command.SANITIZER_REFUSES: "skipped"}}
    assert run_stage(code(says + "raise SystemExit(1)", **pattern), tmp_path).status == "skipped"
    assert run_stage(code(says, **pattern), tmp_path).status == "passed"
    assert run_stage(code("raise SystemExit(1)", **pattern), tmp_path).status == "failed"


def test_a_stage_past_its_limit_is_interrupted_and_may_say_how_far_it_came(tmp_path):
    text = (
        "import time\ntry:\n    print('going', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('3 of 9')"
    )
    began = time.monotonic()
    found = run_stage(code(text, limit_s=3.0), tmp_path)
    assert (found.status, found.detail) == ("timed out", "3 of 9")
    assert time.monotonic() - began < 30


TESTS = """
import pytest, time

@pytest.mark.parametrize("index", range(200))
def test_one(index):
    time.sleep(0.1)
    assert index != 1
"""


def test_a_session_ends_in_time_with_its_failures(tmp_path):
    (tmp_path / "test_slow.py").write_text(TESTS)
    stage = command.pytest_stage("late", command.STOP_S + 1.0, None, str(tmp_path), f"--rootdir={tmp_path}")
    found = run_stage(replace(stage, limit_s=60.0), tmp_path)
    assert found.status == "timed out"
    assert re.match(r"1 failed, \d+ passed in", found.detail), found.detail
    assert any(line.startswith("FAILED ") and "test_one[1]" in line for line in found.tail)


def test_one_that_ignores_the_interrupt_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE_S", 0.5)
    child = "import time; time.sleep(600)"
    text = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\nprint(child.pid, flush=True)\ntime.sleep(600)"
    )
    found = run_stage(code(text, limit_s=3.0), tmp_path)
    assert found.status == "timed out"
    for _ in range(600):  # a busy machine takes its time to end it
        if has_ended(found.detail):
            break
        time.sleep(0.1)
    assert has_ended(found.detail)


def has_ended(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_chains_run_side_by_side_and_phases_one_after_the_other(tmp_path):
    """Two stages that wait for each other's file end only if both run at once; a failure stops nothing."""
    meet = "import pathlib, time\npathlib.Path({0!r}).touch()\nwhile not pathlib.Path({1!r}).exists(): time.sleep(0.01)"
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    first = code(meet.format(one, other), "a"), code("raise SystemExit(1)", "a2")
    phases = [(first, (code(meet.format(other, one), "b"),)), ((code("print('still here')", "c"),),)]
    noted = []
    outcomes = run_phases(phases, tmp_path / "logs", noted.append, 600.0)
    assert outcomes == noted
    assert {found.name for found in outcomes if found.status == "passed"} == {"a", "b", "c"}
    assert {found.name for found in outcomes if found.status == "failed"} == {"a2"}
    assert outcomes[-1].name == "c"


def test_what_there_is_no_time_for_is_not_started(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE_S", 1.0)
    slow = code("import time; time.sleep(60)", "slow")
    phases = [((slow, code("print()", "late"), code("print()", "blocked", obstacle="There is none.")),)]
    outcomes = run_phases(phases, tmp_path, lambda outcome: None, 3.0)
    assert [found.status for found in outcomes] == ["timed out", "timed out", "skipped"]
    assert outcomes[0].seconds < 30 and outcomes[1].detail == "no time was left for it"


def all_stages(phases) -> list[Stage]:
    return [stage for phase in phases for chain in phase for stage in chain]


def test_the_limits_of_the_real_stages_keep_to_the_total(tmp_path):
    phases = command.phases(tmp_path, tmp_path / "mamba.tar.gz")
    assert longest_s(phases) <= command.TOTAL_S - stages.GRACE_S
    names = [stage.name for stage in all_stages(phases)]
    assert len(set(names)) == len(names)
    assert set(command.TOOLS) < set(names) and {"build", "cuda cases", "triton cases", "benchmark"} < set(names)


def test_the_cases_on_triton_are_there():
    """A word that no test has in its name, its file or its shape would leave cases out in silence."""
    files = sorted((command.ROOT / "tests" / "kernels").glob("test_*.py"))
    known = [name for path in files for name in (path.stem, *re.findall(r"def (test_\w+)", path.read_text()))]
    words = set(re.findall(r"\w+", command.TRITON_CASES)) - {"and", "or"}
    assert not [word for word in words if not any(word in name for name in (*known, *test_s4d.SHAPES, *conv_shapes()))]


def conv_shapes() -> list[str]:
    return [test_conv.name_of(shape) for shape in test_conv.SHAPES]


def test_nothing_of_it_needs_what_a_network_brings(tmp_path):
    for stage in all_stages(command.phases(tmp_path, None)):
        assert not {"pip", "install", "git"} & set(stage.command), stage.command


def test_selected_stages(tmp_path):
    phases = command.phases(tmp_path, None)
    chosen = command.selected(phases, ["benchmark", "memcheck", "build"])
    assert [stage.name for stage in all_stages(chosen)] == ["build", "memcheck", "benchmark"]
    assert command.selected(phases, []) == phases
    with pytest.raises(ValueError, match=r"unknown stage 'bench'; expected some of build, rival"):
        command.selected(phases, ["bench"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_everything_says_why_it_is_skipped(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.count(command.NO_DEVICE) == len(all_stages(command.phases(tmp_path, None))) - 1
    assert "MAMBA_SDIST" in out and out.endswith("Nothing was tested.\n")
    assert not list(tmp_path.iterdir())


def test_the_outcome_is_written_as_it_grows_and_decides_the_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    phases = [((code("print('fine')", "good"), code("raise SystemExit(1)", "bad")),)]
    assert command.run(phases, tmp_path / "out", "cpu") == 1
    found = json.loads((tmp_path / "out" / "test-gpu.json").read_text())
    assert [(stage["name"], stage["status"]) for stage in found["stages"]] == [("good", "passed"), ("bad", "failed")]
    assert not found["passed"] and {"device", "date", "commit", "torch"} < set(found["environment"])
    assert capsys.readouterr().out.endswith("FAILED: bad\n")
    assert command.run([((code("print('fine')", "good"),),)], None, "cpu") == 0


def test_the_backends_are_those_that_were_built(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    monkeypatch.setattr(command.gpu_device, "describe", lambda device: {"backends": ["before"]})
    monkeypatch.setattr(command.gpu_device, "one_line", str)
    assert command.run([((code("print()", "build"),),)], tmp_path, "cpu") == 0
    found = json.loads((tmp_path / "test-gpu.json").read_text())
    assert found["environment"]["backends"] == list(available_backends())


def test_the_watched_calls_run_and_are_counted():
    """On the CPU backend; a call of each operator comes among the first, and time ends it."""
    backend = require_backend("cpu")
    names = [label for label, _ in sanitized.calls(backend, "cpu")]
    assert {name.split(",")[0] for name in names[:3]} == {"scan", "s4d", "conv"}
    assert len(names) >= 60
    assert sanitized.run_all([backend], "cpu", 600.0) == {backend: len(names)}
    assert sanitized.run_all([backend], "cpu", 0.0) == {backend: 0}


@pytest.mark.parametrize("here", [(), ("triton",)])
def test_every_backend_has_to_be_watched(here, monkeypatch, capsys):
    monkeypatch.setattr(sanitized, "available_backends", lambda: here)
    assert sanitized.main(["--seconds", "0"]) == 1
    printed = capsys.readouterr().out
    assert all((f"{name} does not run here" in printed) == (name not in here) for name in ("cuda", "triton"))


APPROXIMATE = """
import pytest, torch
from tests.kernels import bounds

@pytest.mark.parametrize("used", [0.5, 1.5, 3.5, None])
def test_one(used):
    if used is not None:
        bounds.judge("y", torch.tensor(used), torch.tensor(1.0), is_exact=False)
"""


@pytest.mark.parametrize("processes", ["0", "1"])
def test_it_is_told_how_far_approximations_go(processes, tmp_path):
    (tmp_path / "test_accuracy.py").write_text(APPROXIMATE)
    arguments = (str(tmp_path), f"--rootdir={tmp_path}", "-n", processes)
    assert run_stage(command.pytest_stage("told", 60.0, None, *arguments), tmp_path).status == "passed"
    told = "bound (a) for exact functions: 2 of 3 tests beyond it, 3.50 times in test_accuracy.py::test_one[3.5]"
    assert told in (tmp_path / "told.log").read_text()


SKIPPED = """
from tests.conftest import require_backend

def test_one(monkeypatch):
    monkeypatch.setattr("ssmvdm_kernels.available_backends", tuple)
    require_backend("cuda")
"""


def test_a_backend_that_was_not_built_fails_the_session(tmp_path):
    """It is not skipped: a stage in which nothing ran would pass."""
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    found = run_stage(command.pytest_stage("skipped", 60.0, None, str(tmp_path), f"--rootdir={tmp_path}"), tmp_path)
    assert found.status == "failed" and any("'cuda' does not run here" in line for line in found.tail)


def test_outcomes_are_plain_values():
    found = Outcome("a", "passed", 1.0, "", "true").as_json()
    assert json.loads(json.dumps(found))["name"] == "a"


def test_few_sequences_have_the_layouts_of_the_benchmark(capsys):
    """On the CPU, whose kernels take any layout."""
    compiled.main(require_backend("cpu"), "cpu")
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == list(LAYOUTS)

"""The memory benchmark from end to end on the smallest network, and what it does when a child fails."""

import csv
import json
import multiprocessing
import os
import signal
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.measure.children import call_child
from benchmarks.models import memory, report
from benchmarks.models.memory import MemoryOptions
from benchmarks.shapes import GIB, Network
from ssmvdm import cli

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("rich", reason="rich is not installed")

FILES = sorted(
    [f"memory.{kind}" for kind in ("json", "csv", "html")]
    + [f"memory-{theme}.{kind}" for theme in ("light", "dark") for kind in ("svg", "png")]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of a real run: two layers, one of them ours, two numbers of frames."""
    out = tmp_path_factory.mktemp("results")
    arguments = ["--layers", "linear-attention", "bi-s6", "--frames", "2", "4", "--size", "8", "--base-channels", "8"]
    arguments += ["--repeats", "2", "--threads", "1", "--out", str(out)]
    assert cli.main(["bench", "memory", *arguments]) == 0
    return out


def test_all_files_are_written_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_every_configuration_has_numbers_behind_a_passed_gate(folder):
    result = json.loads((folder / "memory.json").read_text())
    assert [(row["layer"], row["frames"]) for row in result["training"]] == [
        ("linear-attention", 2), ("bi-s6", 2), ("linear-attention", 4), ("bi-s6", 4),
    ]  # fmt: skip
    for row in result["training"]:
        assert row["status"] == "ok", row["detail"]
        assert row["gate"]["passed"]
        assert len(row["gate"]["checks"]) == 2 * 10 + 2 * 3
        assert len(row["step_seconds"]) == len(row["peak_bytes"]) == 2
        weights_gradients_and_moments = 4 * 4 * row["parameters"]
        assert min(row["peak_bytes"]) > row["saved_bytes"] + weights_gradients_and_moments / 2 > 0
    assert {(row["layer"], row["frames"]) for row in result["saved"]} == {
        (layer, frames) for layer in ("linear-attention", "bi-s6") for frames in (2, 4)
    }
    assert all(row["status"] == "ok" and row["gate"]["passed"] for row in result["saved"])
    assert [(row["layer"], row["frames"]) for row in result["modes"]] == [("linear-attention", 4), ("bi-s6", 4)]
    for row in result["modes"]:
        assert row["status"] == "ok", row["detail"]
        assert row["ratio"] > 0.0 and row["gate"]["passed"]
    environment = result["environment"]
    assert environment["threads"] == 1
    assert {"device", "date", "commit", "torch"} <= environment.keys()


def test_csv_has_a_line_per_row(folder):
    with (folder / "memory.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 10
    assert all(row["status"] == "ok" and row["gate_passed"] == "True" for row in rows)
    training = [row for row in rows if row["measure"] == "training"]
    assert all(float(row["step_seconds_min"]) <= float(row["step_seconds_median"]) for row in training)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_carry_their_provenance(folder, theme):
    svg = (folder / f"memory-{theme}.svg").read_text()
    ElementTree.fromstring(svg)
    environment = json.loads((folder / "memory.json").read_text())["environment"]
    for part in (environment["device"], environment["torch"], environment["date"][:10], environment["commit"]):
        assert part in svg
    assert (folder / f"memory-{theme}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_from_outside(folder):
    page = (folder / "memory.html").read_text()
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") >= 6
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_a_report_can_be_drawn_again(folder, tmp_path, capsys):
    assert cli.main(["bench", "report", str(folder / "memory.json"), "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    for name in ("memory.json", "memory.csv", "memory.html", "memory-dark.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("damage", ["training", "modes", "settings", "environment", "wall_seconds"])
def test_a_damaged_result_is_refused(folder, tmp_path, capsys, damage):
    result = json.loads((folder / "memory.json").read_text())
    del result[damage]
    (tmp_path / "memory.json").write_text(json.dumps(result))
    assert cli.main(["bench", "report", str(tmp_path / "memory.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["memory.json"]


def test_what_has_no_number_is_shown_in_words(folder, tmp_path):
    result = json.loads((folder / "memory.json").read_text())
    for row, status in zip(result["training"], ("out of memory", "gate failed", "timeout", "error"), strict=True):
        for number in ("step_seconds", "peak_bytes", "saved_bytes"):
            del row[number]
        row |= {"status": status, "detail": "because <of> this"}
    del result["modes"][0]["ratio"], result["modes"][0]["step_seconds"]
    result["modes"][0] |= {"status": "timeout", "detail": "because <of> this"}
    report.write_all(result, tmp_path)
    page = (tmp_path / "memory.html").read_text()
    for status in ("out of memory", "gate failed", "timeout", "error"):
        assert status in page
        assert status in (tmp_path / "memory-light.svg").read_text()
    assert "because &lt;of&gt; this" in page
    assert "<of>" not in page


def request(**changes) -> dict:
    network = Network.small(8, 16).as_json()
    base = {"task": "training", "layer": "attention-einsum", "frames": 64, "network": network, "threads": 1}
    return base | {"repeats": 1, "seconds": 10.0, "memory_limit_bytes": None} | changes


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory limits are read from Linux's /proc")
def test_running_out_of_memory_is_a_result():
    answer = call_child(request(memory_limit_bytes=int(0.05 * GIB)))
    assert answer["status"] == "out of memory"
    assert "step_seconds" not in answer


def test_a_child_that_takes_too_long_is_a_result():
    assert call_child(request(), timeout=0.5)["status"] == "timeout"


def test_a_child_that_breaks_is_a_result(capfd):
    answer = call_child(request(layer="lstm"))
    assert answer["status"] == "error"
    assert "unknown layer 'lstm'" in answer["detail"]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_killed_child_is_a_result():
    """Signal 9 is what the system's out-of-memory killer sends."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call_child, request(frames=256, repeats=100))
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(children[0].pid, signal.SIGKILL)
        assert answer.result()["status"] == "out of memory"
        assert "signal 9" in answer.result()["detail"]


def test_after_a_failure_the_others_go_on(monkeypatch):
    real = memory.call_child

    def call(request, **options):
        failure = {"status": "out of memory", "detail": "killed by the system (signal 9)"}
        return failure if request.get("frames") == 2 else real(request, **options)

    monkeypatch.setattr(memory, "call_child", call)
    options = MemoryOptions(layers=("linear-attention",), frames=(2, 3), size=8, base_channels=8, repeats=1, threads=1,
                            skip_paper=True)  # fmt: skip
    result = memory.measure(options, lambda *progress: None)
    assert [row["status"] for row in result["training"]] == ["out of memory", "ok"]
    assert "signal 9" in result["training"][0]["detail"]


def test_options_are_checked_again_without_the_command_line():
    MemoryOptions().check()
    with pytest.raises(ValueError, match="--frames"):
        MemoryOptions(frames=()).check()

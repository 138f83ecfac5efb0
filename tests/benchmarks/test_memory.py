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
import torch

from benchmarks import child
from benchmarks.measure import children
from benchmarks.measure.children import call_child
from benchmarks.measure.journal import Journal
from benchmarks.models import memory, tasks
from benchmarks.models.kind import KIND, MEASURES, SECTIONS
from benchmarks.models.options import MemoryOptions
from benchmarks.report.files import write_all
from ssmvdm import cli
from ssmvdm.compared import Network
from ssmvdm.process_memory import GIB
from ssmvdm.temporal.linear_attention import TemporalLinearAttention

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("rich", reason="rich is not installed")

PICTURES = ("memory", "memory-sampling", "memory-paper")
FILES = sorted(
    [f"memory.{kind}" for kind in ("json", "csv", "md", "html")]
    + [f"{stem}-{theme}.{kind}" for stem in PICTURES for theme in ("light", "dark") for kind in ("svg", "png")]
)
NAMES = ("attention-einsum", "bi-s6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of a real run: two layers, one of them ours, two numbers of frames."""
    out = tmp_path_factory.mktemp("results")
    arguments = ["--layers", *NAMES, "--frames", "2", "4", "--size", "8", "--base-channels", "8", "--threads", "1"]
    arguments += ["--repeats", "2", "--search-limit-gib", "0.06", "--search-resolution", "32", "--widths", "112", "120"]
    assert cli.main(["bench", "memory", *arguments, "--width-frames", "4", "--out", str(out)]) == 0
    return out


@pytest.fixture
def result(folder):
    return json.loads((folder / "memory.json").read_text())


def test_all_files_are_written_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_every_configuration_has_numbers_behind_a_passed_gate(result):
    for section in ("training", "sampling"):
        assert [(row["layer"], row["frames"]) for row in result[section]] == [
            (layer, frames) for frames in (2, 4) for layer in NAMES
        ]
        for row in result[section]:
            assert row["status"] == "ok", row["detail"]
            assert row["gate"]["passed"]
            assert (len(row["step_seconds"]), len(row["peak_bytes"])) == (2, 1)
    for row in result["training"]:
        assert len(row["gate"]["checks"]) == 2 * 10 + 2 * 3
        weights_gradients_and_moments = 4 * 4 * row["parameters"]
        assert min(row["peak_bytes"]) > row["saved_bytes"] + weights_gradients_and_moments / 2 > 0
    for row, trained in zip(result["sampling"], result["training"], strict=True):
        assert len(row["gate"]["checks"]) == 10 + 1
        assert row["parameters"] == trained["parameters"]
        assert 4 * row["parameters"] / 2 < max(row["peak_bytes"]) < min(trained["peak_bytes"])
    assert [(row["layer"], row["frames"]) for row in result["modes"]] == [(layer, 4) for layer in NAMES]
    for row in result["modes"]:
        assert row["status"] == "ok", row["detail"]
        assert row["ratio"] > 0.0 and row["gate"]["passed"]
    environment = result["environment"]
    assert environment["threads"] == 1
    assert {"device", "date", "commit", "torch"} <= environment.keys()


def test_layers_are_compared_at_the_most_frames_that_each_section_has(result):
    (table,) = (table for table in KIND.tables(result) if table.title.startswith("Other layers over bi-S6"))
    assert [(row[1], row[4]) for row in table.rows] == [("4", "4")]
    longer = json.loads(json.dumps(result))
    for row in longer["sampling"]:
        row["frames"] *= 8
    for row in longer["training"]:
        row["status"] = "timeout"
    (table,) = (table for table in KIND.tables(longer) if table.title.startswith("Other layers over bi-S6"))
    (cells,) = table.rows
    assert cells[1:5] == ["–", "–", "–", "32"]


def test_turns_that_one_of_the_modes_did_not_have_are_left_out():
    turns = {"lean": [2.0, None, 4.0], "fast": [1.0, 1.0, 1.0, 1.0]}
    (measure,) = (measure for measure in MEASURES if measure.section == "modes")
    assert measure.samples({"step_seconds": turns}) == [2.0, 4.0]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory limits are read from Linux's /proc")
def test_the_most_frames_are_bracketed_by_real_steps(result):
    assert [row["layer"] for row in result["limits"]] == list(NAMES)
    for row in result["limits"]:
        assert row["status"] == "ok", row["detail"]
        assert row["gate"]["passed"]
        found = {probe["frames"]: probe["status"] for probe in row["probes"]}
        assert found[row["most_frames"]] == "ok"
        assert found[row["too_many_frames"]] == "out of memory"
        assert row["too_many_frames"] - row["most_frames"] == 32


def test_what_is_counted_at_the_papers_setting_fits_together(result):
    assert [(row["layer"], row["frames"]) for row in result["saved"]] == [
        (layer, frames) for layer in NAMES for frames in (2, 4)
    ]
    rows = result["saved"] + result["widths"] + result["predicted"]
    assert all(row["status"] == "ok" and row["gate"]["passed"] for row in rows)
    saved = {(row["layer"], row["frames"]): row["training_bytes"] for row in result["saved"]}
    widths = {(row["layer"], row["base_channels"]): row["training_bytes"] for row in result["widths"]}
    for layer in NAMES:
        assert widths[layer, 112] == saved[layer, 4] < widths[layer, 120]
    for row in result["predicted"]:
        assert 0 < row["training_bytes"] <= row["memory_bytes"]
    most = {(row["layer"], row["memory_bytes"]): row["most_frames"] for row in result["predicted"]}
    for size in (24 * 10**9, 80 * 10**9, 141 * 10**9):
        assert most["attention-einsum", size] < most["bi-s6", size] / 4


def test_csv_has_a_line_per_row_and_quantity(folder):
    with (folder / "memory.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = {"training": 4 * 3, "sampling": 4 * 2, "modes": 2, "limits": 2, "saved": 4, "predicted": 6, "widths": 4}
    assert {section: sum(row["section"] == section for row in rows) for section in lines} == lines
    assert len(rows) == sum(lines.values())
    assert all(row["status"] == "ok" and row["gate_passed"] == "True" for row in rows)
    assert all(float(row["p10"]) <= float(row["median"]) <= float(row["p90"]) for row in rows)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("stem", PICTURES)
def test_figures_carry_their_provenance(folder, result, stem, theme):
    svg = (folder / f"{stem}-{theme}.svg").read_text()
    ElementTree.fromstring(svg)
    environment = result["environment"]
    for part in (environment["device"], environment["torch"], environment["date"][:10], environment["commit"]):
        assert part in svg
    if stem == "memory-paper":
        assert "predicted" in svg and "activations of backward excluded" in svg
    assert (folder / f"{stem}-{theme}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_from_outside(folder):
    page = (folder / "memory.html").read_text()
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") >= 2 * (3 + 2 + 2)
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_a_report_can_be_drawn_again(folder, tmp_path, capsys):
    assert cli.main(["bench", "report", str(folder / "memory.json"), "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    for name in ("memory.json", "memory.csv", "memory.md", "memory.html", "memory-dark.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("damage", [*SECTIONS, "settings", "environment", "wall_seconds"])
def test_a_damaged_result_is_refused(result, tmp_path, capsys, damage):
    del result[damage]
    (tmp_path / "memory.json").write_text(json.dumps(result))
    assert cli.main(["bench", "report", str(tmp_path / "memory.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["memory.json"]


def without_numbers(row: dict, status: str) -> None:
    for number in ("step_seconds", "peak_bytes", "saved_bytes", "ratio", "most_frames", "training_bytes"):
        row.pop(number, None)
    row |= {"status": status, "detail": "because <of> this"}


def test_what_has_no_number_is_shown_in_words(result, tmp_path):
    statuses = ("out of memory", "gate failed", "timeout", "error")
    for section in ("training", "sampling"):
        for row, status in zip(result[section], statuses, strict=True):
            without_numbers(row, status)
    for section in ("modes", "limits", "saved", "widths", "predicted"):
        without_numbers(result[section][0], "timeout")
    write_all([result], {}, tmp_path, "memory")
    page = (tmp_path / "memory.html").read_text()
    for status in statuses:
        assert status in page
        assert status in (tmp_path / "memory-light.svg").read_text()
        assert status in (tmp_path / "memory-sampling-light.svg").read_text()
    assert "because &lt;of&gt; this" in page
    assert "<of>" not in page


def table(result: dict, title: str) -> list[list[str]]:
    return next(table.rows for table in KIND.tables(result) if table.title == title)


def test_equal_memory_is_read_off_between_the_counted_widths(result):
    """A power law between two widths is a straight line in logarithms; beyond the counted ones it is not followed."""
    result["widths"] = [
        {"layer": layer, "frames": 4, "base_channels": width, "status": "ok", "detail": "", "training_bytes": memory}
        for layer, scale in (("attention-einsum", 1), ("bi-s6", 0.25))
        for width, memory in ((56, scale * 56**2), (112, scale * 112**2), (448, scale * 448**2))
    ]
    result["settings"]["widths"] = [56, 112, 448]
    assert [row[1] for row in table(result, "Width of equal memory")] == ["112", "224"]
    for row in result["widths"]:
        row["training_bytes"] *= 1 if row["layer"] == "attention-einsum" else 40
    assert [row[1] for row in table(result, "Width of equal memory")] == ["112", "< 56"]
    for row in result["widths"]:
        row["training_bytes"] *= 1 if row["layer"] == "attention-einsum" else 1e-3
    assert [row[1] for row in table(result, "Width of equal memory")] == ["112", "> 448"]
    without_numbers(result["widths"][1], "timeout")
    assert [row[1] for row in table(result, "Width of equal memory")] == ["–", "–"]


def request(**changes) -> dict:
    network = Network.small(8, 16).as_json()
    base = {
        "task": "training",
        "layer": "attention-einsum",
        "frames": 64,
        "network": network,
        "threads": 1,
        "device": "cpu",
    }
    return base | {"repeats": 1, "seconds": 10.0, "memory_limit_bytes": None} | changes


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory limits are read from Linux's /proc")
def test_running_out_of_memory_is_a_result():
    answer = call_child(request(memory_limit_bytes=int(0.05 * GIB)))
    assert answer["status"] == "out of memory"
    assert "step_seconds" not in answer


def test_a_child_that_takes_too_long_is_a_result():
    assert call_child(request(), timeout=0.5)["status"] == "timeout"


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(("end", "status"), [("kill", "out of memory"), ("sleep", "timeout"), ("raise", "error")])
def test_what_a_child_had_so_far_comes_with_how_it_ended(end, status, monkeypatch):
    def parts(request):
        yield {"rows": [], "unfinished": "first"}
        yield {"rows": [1], "unfinished": "second"}
        {"kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "sleep": lambda: time.sleep(60)}[end]()

    monkeypatch.setitem(child.TASKS, "parts", parts)
    monkeypatch.setattr(children, "_context", lambda: multiprocessing.get_context("fork"))
    answer = children.call_child({"task": "parts", "threads": 1}, timeout=2.0)
    assert (answer["status"], answer["rows"], answer["unfinished"]) == (status, [1], "second")


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


def test_a_layer_that_is_wrong_without_gradients_alone_fails_the_gate_of_sampling(monkeypatch):
    right = TemporalLinearAttention.forward

    def wrong(layer, *arguments, **keywords):
        y = right(layer, *arguments, **keywords)
        return y if torch.is_grad_enabled() else 1.001 * y

    monkeypatch.setattr(TemporalLinearAttention, "forward", wrong)
    small = request(layer="linear-attention", frames=2, network=Network.small(8, 8).as_json())
    assert tasks.training(small)["status"] == "ok"
    answer = tasks.sampling(small)
    assert answer["status"] == "gate failed"
    assert "output of temporal layer 0" in answer["detail"]
    assert "step_seconds" not in answer


def small_options(**changes) -> MemoryOptions:
    small = {
        "layers": ("linear-attention",),
        "frames": (2, 3),
        "size": 8,
        "base_channels": 8,
        "repeats": 1,
        "threads": 1,
    }
    return MemoryOptions(**small | {"skip_paper": True, "search_limit_gib": None, "search_resolution": 16} | changes)


def measured(options: MemoryOptions, journal: Journal) -> dict:
    return memory.measure(options, lambda *progress: None, journal)


def test_after_a_failure_the_others_go_on(monkeypatch, tmp_path):
    real = memory.call_child

    def call(request, **options):
        failure = {"status": "out of memory", "detail": "killed by the system (signal 9)"}
        return failure if request.get("frames") == 2 else real(request, **options)

    monkeypatch.setattr(memory, "call_child", call)
    result = measured(small_options(), Journal(tmp_path / "journal", {}, resume=False))
    for section in ("training", "sampling"):
        assert [row["status"] for row in result[section]] == ["out of memory", "ok"]
        assert "signal 9" in result[section][0]["detail"]


def scripted(answers):
    """A call_child that asks answers(request); other tasks than training have run out of time."""

    def call(request, **options):
        timeout = {"status": "timeout", "detail": "not done after 300 s"}
        return answers(request) if request["task"] == "training" else timeout

    return call


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory limits are read from Linux's /proc")
@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (75, {"status": "ok", "most_frames": 64, "too_many_frames": 80}),
        (15, {"status": "out of memory", "detail": "16 frames do not fit"}),
    ],
)
def test_the_search_takes_what_its_probes_say_and_resumes(monkeypatch, tmp_path, most, expected):
    fine = {"status": "ok", "detail": "", "gate": {"passed": True, "checks": []}}
    peaks = {"step_seconds": [1.0], "peak_bytes": [2**29], "saved_bytes": 1, "parameters": 1}
    asked = []

    def answers(request):
        asked.append(request["frames"])
        if request["frames"] > most:
            return {"status": "out of memory", "detail": "an allocation failed"}
        return fine | peaks

    monkeypatch.setattr(memory, "call_child", scripted(answers))
    monkeypatch.setattr(memory, "environment_of", lambda *run: {})
    path = tmp_path / "journal"
    options = small_options(search_limit_gib=1.0)
    result = measured(options, Journal(path, {}, resume=False))
    (row,) = result["limits"]
    assert {name: row[name] for name in expected} == expected
    assert [probe["frames"] for probe in row["probes"]] == asked[2:]
    asked.clear()
    assert measured(options, Journal(path, {}, resume=True)) == result
    assert asked == []


def test_a_probe_that_decides_nothing_ends_the_search_in_words(monkeypatch, tmp_path):
    timeout = {"status": "timeout", "detail": "not done after 300 s"}
    monkeypatch.setattr(memory, "call_child", scripted(lambda request: timeout))
    monkeypatch.setattr(memory, "environment_of", lambda *run: {})
    monkeypatch.setattr(memory, "resident_bytes", lambda: 1)
    options = small_options(search_limit_gib=1.0)
    (row,) = measured(options, Journal(tmp_path / "journal", {}, resume=False))["limits"]
    assert (row["status"], row["detail"]) == ("timeout", "16 frames: not done after 300 s")


@pytest.mark.parametrize(
    ("runs_with_more", "status", "detail"),
    [
        (True, "out of memory", "16 frames do not fit"),
        (False, "error", "16 frames: ended without an answer, exit status -11"),
    ],
)
def test_a_crash_within_the_limit_alone_is_lack_of_memory(monkeypatch, tmp_path, runs_with_more, status, detail):
    """As oneDNN crashes where it finds no memory for the code of a kernel; what crashes anyway stays an error."""
    fine = {"status": "ok", "detail": "", "gate": {"passed": True, "checks": []}}
    peaks = {"step_seconds": [1.0], "peak_bytes": [2**29], "saved_bytes": 1, "parameters": 1}
    crash = {"status": "error", "detail": "ended without an answer, exit status -11"}

    def answers(request):
        limited = request["memory_limit_bytes"] == 2**30
        return crash if limited or not runs_with_more else fine | peaks

    monkeypatch.setattr(memory, "call_child", scripted(answers))
    monkeypatch.setattr(memory, "environment_of", lambda *run: {})
    monkeypatch.setattr(memory, "resident_bytes", lambda: 1)
    (row,) = measured(small_options(search_limit_gib=1.0), Journal(tmp_path / "journal", {}, resume=False))["limits"]
    assert (row["status"], row["detail"]) == (status, detail)
    assert {probe["status"] for probe in row["probes"]} == {status}


def test_where_memory_cannot_be_limited_nothing_is_searched(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "call_child", scripted(lambda request: {"status": "error", "detail": "none"}))
    monkeypatch.setattr(memory, "environment_of", lambda *run: {})
    monkeypatch.setattr(memory, "resident_bytes", lambda: None)
    options = small_options(search_limit_gib=1.0)
    (row,) = measured(options, Journal(tmp_path / "journal", {}, resume=False))["limits"]
    assert row["status"] == "not applicable"
    assert row["probes"] == []


def test_a_count_that_fails_as_a_whole_is_a_row_everywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "call_child", scripted(lambda request: {"status": "error", "detail": "none"}))
    monkeypatch.setattr(memory, "environment_of", lambda *run: {})
    options = small_options(skip_paper=False, widths=(64, 112), width_frames=(16,))
    result = measured(options, Journal(tmp_path / "journal", {}, resume=False))
    assert [row["frames"] for row in result["saved"]] == [2, 3]
    assert [(row["base_channels"], row["frames"]) for row in result["widths"]] == [(64, 16), (112, 16)]
    assert len(result["predicted"]) == 3
    assert {row["status"] for section in memory.COUNTED for row in result[section]} == {"timeout"}


@pytest.mark.gpu
def test_the_same_is_measured_on_a_gpu():
    """Weights, gradients and Adam's moments are in the peak of training; the gate passes on what the GPU computed."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for task in ("training", "sampling"):
        answer = call_child(request(task=task, layer="bi-s6", frames=8, device="cuda", repeats=2))
        assert answer["status"] == "ok", answer["detail"]
        copies = 4 if task == "training" else 1
        assert min(answer["peak_bytes"]) >= 4 * copies * answer["parameters"]
    answer = call_child(request(layer="bi-s6", frames=512, device="cuda", memory_limit_bytes=2**26))
    assert answer["status"] == "out of memory"

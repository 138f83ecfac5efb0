"""The layer benchmark end to end on small shapes, its gate, and the published forms against the authors' numbers."""

import csv
import json
import os
import xml.etree.ElementTree as ElementTree
from itertools import product
from statistics import median

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.layers import case as layer_case
from benchmarks.layers import kind, tasks
from benchmarks.layers.candidates import ALL, BASE, MODES, QUICK, Shape, candidate_named
from benchmarks.layers.case import Buffers, Case, gate, truths, two_pixels
from benchmarks.measure import timing
from benchmarks.measure.children import call_child
from benchmarks.measure.meter import meter_of
from ssmvdm import cli, convert
from ssmvdm.process_memory import available_bytes
from ssmvdm.report import page
from ssmvdm.report.plots import THEMES
from tests.model import paper

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("rich", reason="rich is not installed")

FILES = sorted(
    [f"layers.{suffix}" for suffix in ("json", "csv", "md", "html")]
    + [f"layers-{theme}.{suffix}" for theme in ("light", "dark") for suffix in ("svg", "png")]
)
NAMES = ("attention-einsum", "attention-sdpa", "bi-s4d", BASE, f"{BASE}:fast", f"{BASE}:published")
SMALL = Shape(level=1, size=8, frames=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of a real run: one shape at a level, two at the other."""
    out = tmp_path_factory.mktemp("results")
    arguments = ["--layers", *NAMES, "--levels", "4", "--size", "8", "--frames", "3", "6", "--sweep-level", "2"]
    arguments += ["--sweep-size", "8", "--launches", "3", "--budget-seconds", "60", "--threads", "1"]
    assert cli.main(["bench", "layers", *arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def result(folder):
    return json.loads((folder / "layers.json").read_text())


def test_all_files_are_written_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_every_layer_has_numbers_behind_a_passed_gate(result):
    shapes = [("level 4 of 8x8", 3), ("level 2 of 8x8", 3), ("level 2 of 8x8", 6)]
    assert [tuple(row[key] for key in kind.KEYS) for row in result["layers"]] == [
        (place, frames, name, mode) for place, frames in shapes for name in NAMES for mode in MODES
    ]
    for row in result["layers"]:
        assert row["status"] == "ok", row["detail"]
        assert len(row["seconds"]) == len(row["ratios"]) == 3
        assert min(row["seconds"] + row["peak_bytes"]) > 0
        checks = [check["name"] for check in row["gate"]["checks"]]
        assert checks[0] == "output" and row["gate"]["passed"]
        assert ("gradient of x" in checks) == (row["mode"] == "training") == ("saved_bytes" in row)
        if row["layer"] == BASE:
            assert row["ratios"] == [1.0, 1.0, 1.0]
    assert result["settings"]["caches"] == "warm"


def test_what_is_saved_tells_the_forms_apart(result):
    saved = {row["layer"]: row["saved_bytes"] for row in result["layers"]
             if (row["place"], row["frames"], row["mode"]) == ("level 2 of 8x8", 6, "training")}  # fmt: skip
    channels, positions = 224, 6 * 4 * 4
    assert saved[BASE] == 4 * positions * 5 * channels  # the input, and x and z of twice the width
    assert saved[BASE] < saved[f"{BASE}:fast"] < saved[f"{BASE}:published"]
    assert saved["attention-sdpa"] < saved["attention-einsum"]


def test_the_csv_has_every_quantity_of_every_row(folder, result):
    with (folder / "layers.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    modes = {"seconds": MODES, "ratio": MODES, "peak_bytes": MODES, "saved_bytes": ("training",)}
    assert {(line["quantity"], line["mode"]) for line in lines} == {
        (quantity, mode) for quantity, own in modes.items() for mode in own
    }
    assert all(line["status"] == "ok" and line["gate_passed"] == "True" for line in lines)
    assert len(lines) == len(result["layers"]) * 7 / 2


def test_tables_say_what_the_rows_say(result):
    tables = {table.title: table for table in kind.tables(result)}
    assert len(tables) == 9
    row = next(row for row in result["layers"] if row["layer"] == "bi-s4d" and row["mode"] == "training")
    cells = {title: next(cells for cells in table.rows if cells[0] == "bi-S4D (ours)")[1]
             for title, table in tables.items()}  # fmt: skip
    milliseconds, _, rest = cells["Time of a training step, ms"].partition(" (")
    assert milliseconds == kind._number(1e3 * median(row["seconds"])) and rest.count("–") == 1
    assert cells["Frames per second of a training step"] == f"{3 / median(row['seconds']):,.0f}"
    base = candidate_named(BASE).label
    assert cells[f"Time of a training step over that of {base}"] == f"{median(row['ratios']):.2f}"
    assert cells["Peak memory of a training step, MiB"] == f"{median(row['peak_bytes']) / 2**20:,.1f}"
    assert cells["Saved for backward, MiB"] == f"{row['saved_bytes'] / 2**20:,.1f}"
    assert tables["Saved for backward, MiB"].header[1] == "896×1×1, 3 frames"


@pytest.mark.parametrize(("value", "shown"), [(0.012345, "0.0123"), (12.345, "12.3"), (1234.5, "1,234")])
def test_a_number_has_three_digits_or_all_before_the_point(value, shown):
    assert kind._number(value) == shown


def test_what_has_no_number_is_a_cell_in_words(result):
    for row in result["layers"]:
        if row["layer"] == "bi-s4d":
            for number in ("seconds", "ratios", "peak_bytes", "saved_bytes", "gate"):
                row.pop(number, None)
            row |= {"status": "timeout", "detail": "too slow"}
    kind.check(result)
    for table in kind.tables(result):
        cells = next(cells for cells in table.rows if cells[0] == "bi-S4D (ours)")
        assert set(cells[1:]) == {"timeout"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_carries_its_provenance(folder, result, theme):
    svg = (folder / f"layers-{theme}.svg").read_text()
    ElementTree.fromstring(svg)
    environment = result["environment"]
    labels = [candidate_named(name).label for name in NAMES]
    for part in (environment["device"], environment["torch"], environment["commit"], "level 2 of 8x8", *labels):
        assert part in svg


def test_what_is_as_published_has_broken_lines_and_hollow_marks_in_every_panel(result):
    (picture,) = kind.pictures(result)
    published = {"attention-einsum", f"{BASE}:published"}
    assert {entry.name for entry, _, is_filled in picture.legend if not is_filled} == published
    labels = {candidate_named(name).label for name in published}
    for panel, theme in product(picture.panels, THEMES):
        axes = Figure().subplots()
        panel.draw(axes, theme)
        lines = axes.get_legend_handles_labels()[0]
        assert len(lines) == len(NAMES)
        for line in lines:
            is_broken, is_hollow = line.get_linestyle() == "--", line.get_markerfacecolor() == theme.ground
            assert is_broken == is_hollow == (line.get_label() in labels)


@pytest.mark.parametrize("damage", ["settings", "seconds", "place", "layer"])
def test_a_damaged_result_is_refused(result, damage):
    if damage == "settings":
        del result["settings"]["shapes"]
    elif damage == "layer":
        result["layers"][0]["layer"] = "lstm"
    else:
        del result["layers"][0][damage]
    with pytest.raises((KeyError, ValueError)):
        kind.check(result)


def test_every_mark_can_be_shown_on_a_page_and_no_two_layers_look_alike():
    looks = [(candidate.color, candidate.marker) for candidate in map(candidate_named, ALL)]
    assert len(set(looks)) == len(looks) == len({candidate_named(name).label for name in ALL})
    assert {marker for _, marker in looks} <= set(page.MARKS)
    assert set(QUICK) <= set(ALL)


@pytest.mark.parametrize("name", paper.LAYERS)
def test_a_published_form_has_the_numbers_of_the_authors(name):
    truth = paper.load(name)
    layer = convert.temporal_layer_from_paper(paper.architecture(name), truth.config, truth.state_dict)
    sequences = truth.tensors["x"].clone().requires_grad_()
    y = paper.as_sequences(layer_case._published(layer)(paper.as_video(sequences), None))
    (y * truth.tensors["w"]).sum().backward()
    eps = torch.finfo(torch.float32).eps
    limit = 64 * eps * y.numel() ** 0.5  # every value is a sum of many, whose roundings add up as their square root
    assert paper.relative_error(y, truth.tensors["y"]) < limit
    assert paper.relative_error(sequences.grad, truth.tensors["dx"]) < limit
    paper.check_gradients(layer, truth.grads, limit)


@pytest.mark.parametrize("name", [f"{BASE}/gss", "s4d:published", "s4d/mlp:published", "linear-attention", "s6"])
def test_the_gate_passes_what_is_right(name):
    case = Case(candidate_named(name), Buffers(SMALL, "cpu"))
    truth = truths(case)
    for mode in MODES:
        assert gate(case, mode, truth).first_failure() == ""


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (lambda case, x, bias: case.layer(x, bias) * (1 + 1e-4), {"inference": "output", "training": "output"}),
        (lambda case, x, bias: case.layer(x.flip(2), bias).flip(2), {"inference": "output", "training": "output"}),
        (lambda case, x, bias: case.layer(x + 1e-4 * (x - x.detach()), bias), {"training": "gradient of x"}),
        (lambda case, x, bias: _last_row_wrong(case.layer(x, bias)), {"inference": "output", "training": "output"}),
        (lambda case, x, bias: case.layer(x, bias.detach() + 1.001 * (bias - bias.detach())),
         {"training": "gradient of position bias"}),
        (lambda case, x, bias: case.layer(x, bias.detach() if x.shape[-1] > 1 else bias) + 0.0 * bias.sum(),
         {"training": "gradient of position bias"}),
    ],
    ids=["scaled", "turned", "gradient", "last row", "bias", "bias, many pixels"],
)  # fmt: skip
def test_the_gate_fails_what_is_wrong(fault, failing):
    case = Case(candidate_named("attention-einsum"), Buffers(SMALL, "cpu"))
    truth = truths(case)
    case.run = lambda x, bias: fault(case, x, bias)
    found = {mode: gate(case, mode, truth).first_failure().partition(":")[0] for mode in MODES}
    assert {mode: name for mode, name in found.items() if name} == failing


def _last_row_wrong(y):
    return torch.cat([y[..., :-1, :], 1.01 * y[..., -1:, :]], dim=-2)


def test_the_two_pixels_are_a_view_of_the_first_and_the_last_row():
    video = torch.arange(2 * 3 * 4 * 4.0).view(1, 2, 3, 4, 4)
    found = two_pixels(video)
    assert torch.equal(found[..., 0], torch.stack([video[..., 0, 0], video[..., 3, 0]], dim=-1))
    assert found.data_ptr() == video.data_ptr()
    assert two_pixels(video[..., :1, :1]).shape == (1, 2, 3, 1, 1)


def test_forms_of_a_layer_have_the_same_weights_and_rivals_their_own():
    buffers = Buffers(SMALL, "cpu")
    names = (BASE, f"{BASE}:fast", f"{BASE}:published")
    ours, fast, published = (Case(candidate_named(name), buffers) for name in names)
    for case in (fast, published):
        assert case.candidate.weights == ours.candidate.weights
        for name, weight in ours.weights.items():
            assert torch.equal(weight, case.weights[name])
    attention = [candidate_named(name).weights for name in ("attention-sdpa", "flex-attention", "sdpa-rotary")]
    assert attention[0] == attention[1] != attention[2]


def test_a_layer_that_breaks_leaves_the_others_to_be_measured(monkeypatch, capsys):
    def broken(layer):
        def run(x, bias):
            raise RuntimeError("no such thing\nand more")

        return run

    monkeypatch.setitem(layer_case._FORMS, "published", broken)
    names = [f"{BASE}:published", BASE]
    request = {"layers": dict.fromkeys(MODES, names), "shape": vars(SMALL), "device": "cpu", "launches": 2}
    monkeypatch.setattr(tasks.process_memory, "available_bytes", lambda: None)  # no limit on this process
    monkeypatch.setattr(tasks.process_memory, "keep_freed_memory", lambda: None)
    answer = tasks.in_turns(request | {"budget_seconds": 10.0})
    for mode in MODES:
        failed, good = (answer["rows"][mode][name] for name in names)
        assert failed == {"status": "error", "detail": "RuntimeError: no such thing"}
        assert good["status"] == "ok" and len(good["seconds"]) == 2
    assert "no such thing" in capsys.readouterr().err


def test_on_a_gpu_every_turn_has_many_launches_and_peaks_are_those_of_its_allocator(monkeypatch):
    class Timer:
        turns = timing.CudaTimer.turns

        def block(self, launch, launches):
            blocks.append(launches)
            return [1e-3] * launches

    blocks, rows = [], {"one": {}, BASE: {}}
    calls = dict.fromkeys(rows, lambda: None)
    tasks._add_times(Timer(), calls, rows, {"launches": 200, "budget_seconds": 5.0})
    assert blocks == [1, 1] + [20] * 20
    assert len(rows["one"]["seconds"]) == 200 and rows["one"]["ratios"] == [1.0] * 10

    counted = iter((100, 250))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: next(counted))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(counted))
    meter = meter_of("cuda")
    before = tasks._start_of_peak(meter)
    assert (before, meter.peak() - before) == (100, 150)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory limits are read from Linux's /proc")
def test_a_layer_that_does_not_fit_is_out_of_memory():
    frames = 2 * available_bytes() // (4 * 112 * 32 * 32)
    request = {"task": "layer_alone", "layer": "s6", "modes": ["training"], "shape": vars(Shape(1, 32, frames))}
    answer = call_child(request | {"device": "cpu", "threads": 1, "budget_seconds": 1.0})
    assert answer["status"] == "out of memory"


@pytest.mark.slow
def test_flex_attention_is_right_and_cannot_train_on_a_cpu():
    case = Case(candidate_named("flex-attention"), Buffers(SMALL, "cpu"))
    assert gate(case, "inference", truths(case)).has_passed
    assert tasks._attempt(case.training)["status"] == "not applicable"

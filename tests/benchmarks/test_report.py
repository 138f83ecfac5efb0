"""What is made of a result: comparison with an earlier one, Markdown, CSV, a page. On results written here by hand."""

import csv
import json
import sys
import types
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.kernels.kind import KIND
from benchmarks.options import RunOptions
from benchmarks.report import compare
from benchmarks.report.files import spread, write_all
from benchmarks.report.kinds import about, kind_named
from ssmvdm import cli, lock
from ssmvdm.errors import InputError
from ssmvdm.report.tables import Table, markdown

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("rich", reason="rich is not installed")

ENVIRONMENT = {
    "device": "a <processor>", "threads": 2, "torch": "2", "ssmvdm": "0", "commit": "abc",
    "date": "2026-01-02T03:04:05", "cores": 2, "load_before": 0.0,
}  # fmt: skip
OK = {"status": "ok", "detail": ""}
GATE = {"passed": True, "checks": [{"name": "y", "value": 1e-7, "bound": 2e-7, "passed": True}]}
FAILED_GATE = {"passed": False, "checks": [{"name": "du", "value": "nan", "bound": 2e-7, "passed": False}]}


def shape(sequences, length):
    return {"sequences": sequences, "channels": 8, "length": length, "states": 4, "source": "here", "is_sweep": False}


def row(shape, name, mode, **more):
    known = {"shape": shape, "name": name, "label": f"<{name}>", "is_ours": name.startswith("ours"), "mode": mode}
    return known | OK | {"gate": GATE, "timed_sequences": 4} | more


@pytest.fixture
def result():
    """Ours, one rival that was measured and one that was not, at one shape."""
    base = "ours float32 channels-last"
    return {
        "schema": 1, "kind": "scan", "environment": dict(ENVIRONMENT), "wall_seconds": 1.5,
        "settings": {"device": "cpu", "states": 4, "dtypes": ["float32"], "layouts": [], "threads": [1, 2],
                     "launches": 3, "budget_seconds": 1.0, "base": base, "keeps_freed_memory": True, "caches": "warm",
                     "shapes": {"4x2x8": shape(4, 2)}},
        "rates": {"exponentials_per_second": 1e9, "bytes_per_second": 1e9},
        "times": [
            row("4x2x8", base, "forward", seconds=[1e-3, 2e-3, 3e-3], ratio=1.0),
            row("4x2x8", "eager", "forward", seconds=[0.5, 0.5, 0.5], ratio=250.0, timed_sequences=2),
            row("4x2x8", "pscan", "forward", status="gate failed", detail="du: <nan>", gate=FAILED_GATE),
        ],
        "threads": [{"shape": "4x2x8", "mode": "forward", "threads": 2, "speedup": [1.5]} | OK],
        "memory": [{"shape": "4x2x8", "name": "ours", "tensors": 3.0, "peak_bytes": 2**20} | OK],
        "clocks": [],
    }  # fmt: skip


def verdicts(old, new):
    """(name, quantity) -> verdict."""
    table = compare.comparison(KIND, old, new)
    return {(cells[0], cells[1]): cells[-1] for cells in table.rows}


def test_a_result_beside_itself_has_not_changed(result):
    assert set(verdicts(result, result).values()) == {"same"}
    table = compare.comparison(KIND, result, result)
    assert "5 same" in table.caption and "two devices" not in table.caption
    assert len(table.rows) == 5


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "faster"), (0.99, "same"), (1.01, "same"), (2.0, "slower")])
def test_times_are_judged_against_their_noise(result, factor, verdict):
    new = json.loads(json.dumps(result))
    noise = [0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03]
    for each, scale in ((result, 1.0), (new, factor)):
        each["times"][0]["seconds"] = [scale * value for value in noise]
    assert verdicts(result, new)["times: 4x2x8, ours float32 channels-last, forward", "time"] == verdict


@pytest.mark.parametrize(("factor", "verdict"), [(0.8, "faster"), (0.9, "same"), (1.1, "same"), (1.3, "slower")])
def test_one_sample_is_judged_by_the_drift_between_runs(result, factor, verdict):
    new = json.loads(json.dumps(result))
    result["times"][0]["seconds"], new["times"][0]["seconds"] = [1.0], [factor]
    assert verdicts(result, new)["times: 4x2x8, ours float32 channels-last, forward", "time"] == verdict


def test_settings_that_differ_are_told(result):
    new = json.loads(json.dumps(result))
    assert "settings differ" not in compare.comparison(KIND, result, new).caption
    new["settings"]["launches"] = 4000
    new["settings"]["extra"] = list(range(100))
    caption = compare.comparison(KIND, result, new).caption
    assert f"launches ({result['settings']['launches']} before, 4000 now), extra." in caption


def test_memory_and_what_is_better_when_higher_have_words_of_their_own(result):
    new = json.loads(json.dumps(result))
    new["memory"][0]["peak_bytes"] *= 2
    new["threads"][0]["speedup"] = [1.9]
    found = verdicts(result, new)
    assert found["memory: 4x2x8, ours", "peak memory"] == "more memory"
    assert found["threads: 4x2x8, forward, threads 2", "speed-up"] == "better"
    back = verdicts(new, result)
    assert back["memory: 4x2x8, ours", "peak memory"] == "less memory"
    assert back["threads: 4x2x8, forward, threads 2", "speed-up"] == "worse"


def test_rows_come_and_go_break_and_are_mended(result):
    new = json.loads(json.dumps(result))
    new["times"][1] |= {"status": "timeout", "detail": "not done"}
    new["times"][2] = row("4x2x8", "pscan", "forward", seconds=[1.0], ratio=500.0)
    new["memory"][0]["name"] = "s4d-scan"
    found = verdicts(result, new)
    assert found["times: 4x2x8, eager, forward", "time"] == "broken"
    assert found["times: 4x2x8, pscan, forward", "time"] == "fixed"
    assert found["memory: 4x2x8, ours", "peak memory"] == "gone"
    assert found["memory: 4x2x8, s4d-scan", "peak memory"] == "new"


def test_the_noise_band_is_where_ratios_of_resampled_medians_fall():
    """With three samples each, every pair of extremes is drawn often enough; with one each there is no noise."""
    ratio, band = compare.ratio_and_band([1.0, 2.0, 4.0], [3.0, 6.0, 12.0])
    assert ratio == 3.0 and band == (0.75, 12.0)
    assert compare.ratio_and_band([2.0], [3.0]) == (1.5, (1.5, 1.5))
    assert compare.ratio_and_band([0.0], [0.0]) == (1.0, (1.0, 1.0))
    assert compare.ratio_and_band([0.0], [1.0])[1][0] == float("inf")
    generator = np.random.default_rng(1)
    falsely = sum(
        not band[0] <= 1.0 <= band[1]
        for _ in range(200)
        for band in [compare.ratio_and_band(*(list(generator.normal(1.0, 0.05, 9)) for _ in range(2)))[1]]
    )
    assert falsely / 200 <= 2 * (1 - compare.BAND)


def test_results_of_two_devices_are_compared_and_it_is_said(result):
    other = json.loads(json.dumps(result))
    other["environment"]["device"] = "another"
    assert "These are two devices" in compare.comparison(KIND, result, other).caption


def test_an_earlier_result_is_a_file_or_one_of_a_folder(result, tmp_path):
    path = tmp_path / "scan.json"
    path.write_text(json.dumps(result))
    assert compare.earlier(path, ["scan"]) == compare.earlier(tmp_path, ["layers", "scan"]) == {"scan": result}
    with pytest.raises(InputError, match=r"expected a result of layers \(layers.json\)"):
        compare.earlier(path, ["layers"])


def test_a_result_is_written_and_compared_from_the_command_line(result, tmp_path, capsys):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(result))
    result["memory"][0]["peak_bytes"] //= 2
    (tmp_path / "new.json").write_text(json.dumps(result))
    arguments = [str(tmp_path / "new.json"), "--compare", str(old), "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "report", *arguments]) == 0
    assert "less memory" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"scan.{x}" for x in ("csv", "html", "json", "md")
    ]
    for name in ("scan.md", "scan.html"):
        assert "less memory" in (tmp_path / "out" / name).read_text()
    assert json.loads((tmp_path / "out" / "scan.json").read_text()) == result


def test_the_page_has_everything_and_needs_nothing(result, tmp_path):
    page = write_all([result], {}, tmp_path, "scan").read_text()
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page
    assert "&lt;eager&gt;" in page and "<eager>" not in page and "a &lt;processor&gt;" in page
    assert "du: &lt;nan&gt;" in page and "2 of 3 rows" in page
    assert "class=bad>gate failed" in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    links = [part.split('"')[0] for part in page.split('href="#')[1:]]
    assert links and set(links) <= set(ids)


def test_csv_has_a_line_for_every_row_and_quantity(result, tmp_path):
    write_all([result], {}, tmp_path, "scan")
    with (tmp_path / "scan.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["section"], line["status"]) for line in lines] == [
        ("times", "ok"), ("times", "ok"), ("times", "gate failed"), ("threads", "ok"), ("memory", "ok"),
    ]  # fmt: skip
    first = lines[0]
    assert (first["shape"], first["mode"], first["unit"], first["samples"]) == ("4x2x8", "forward", "s", "3")
    assert float(first["median"]) == 2e-3 and float(first["p10"]) < 2e-3 < float(first["p90"])
    assert lines[2]["median"] == "" and lines[2]["detail"] == "du: <nan>" and lines[2]["gate_passed"] == "False"


def test_markdown_says_what_has_no_number(result, tmp_path):
    write_all([result], {}, tmp_path, "scan")
    text = (tmp_path / "scan.md").read_text()
    assert "| <eager> | 250* |" in text
    assert "| gate failed | du: <nan> | times: 4x2x8, pscan, forward |" in text


@pytest.mark.parametrize(
    "damage", ["times", "threads", "settings", "environment", "wall_seconds", "rates", "kind", "schema"]
)
def test_a_damaged_result_is_refused(result, tmp_path, damage):
    del result[damage]
    path = tmp_path / "scan.json"
    path.write_text(json.dumps(result))
    with pytest.raises(InputError, match="is not a result of `ssmvdm bench`"):
        compare.load(path)


@pytest.mark.parametrize("damage", ["shape", "name", "mode", "status", "detail", "seconds", "label", "is_ours"])
def test_a_damaged_row_is_refused(result, tmp_path, damage):
    del result["times"][0][damage]
    path = tmp_path / "scan.json"
    path.write_text(json.dumps(result))
    with pytest.raises(InputError, match="is not a result of `ssmvdm bench`"):
        compare.load(path)


def test_tables_have_cells_for_every_column():
    table = Table("Title", "Caption.", ["a", "b"], [["x|y", "1"]])
    assert markdown(table) == "## Title\n\nCaption.\n\n| a | b |\n| --- | --: |\n| x\\|y | 1 |\n"
    assert "| --- | --- |" in markdown(replace(table, prose=("b",)))
    with pytest.raises(ValueError, match="expected rows of 2 cells"):
        replace(table, rows=[["x"]])


def test_spread_and_names_of_rows():
    values = [float(value) for value in range(11)]
    assert spread(values) == {"median": median(values), "p10": 1.0, "p90": 9.0}
    assert spread([2.0]) == {"median": 2.0, "p10": 2.0, "p90": 2.0}
    assert about({"layer": "s6", "frames": 4, "more": 1}, ("layer", "frames")) == "s6, frames 4"
    with pytest.raises(ValueError, match="unknown kind of result 'lstm'"):
        kind_named("lstm")


def test_values_are_shown_in_units_that_people_read():
    shown = [
        compare.in_unit(*pair) for pair in ((2.5, "s"), (0.25, "s"), (2**31, "bytes"), (2**20, "bytes"), (3.0, "1"))
    ]
    assert shown == ["2.5 s", "250 ms", "2.00 GiB", "1.0 MiB", "3"]


@pytest.fixture
def parts(result, tmp_path, monkeypatch):
    """Two benchmarks that ask for one answer each; the requests that were measured; the options of a run."""
    module, requests = types.ModuleType("two_benchmarks"), []

    def measured(request):
        requests.append(request["task"])
        if request["task"] == module.stops_at:
            raise KeyboardInterrupt
        return {"seconds": [1.0, 2.0, 3.0]}

    def measure(options, advance, journal):
        advance("part", 0.0, 1.0)
        found = json.loads(json.dumps(result))
        found["times"][0]["seconds"] = journal.answer({"task": options.task}, measured)["seconds"]
        return found

    module.measure, module.stops_at = measure, None
    monkeypatch.setitem(sys.modules, "two_benchmarks", module)
    monkeypatch.setattr(runner, "MEASURING", {"first": "two_benchmarks", "second": "two_benchmarks"})
    options = {name: types.SimpleNamespace(task=name) for name in ("first", "second")}
    return module, requests, options


def test_a_run_leaves_results_and_a_page_and_no_journal(parts, tmp_path):
    _, requests, options = parts
    page = runner.run(options, RunOptions(), "report", tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    names = ["report.html", "scan.csv", "scan.json", "scan.md"]
    assert sorted(path.name for path in page.parent.iterdir()) == names
    assert requests == ["first", "second"]


def test_pictures_that_belong_to_earlier_results_go(parts, tmp_path):
    _, _, options = parts
    for name in ("scan-length-dark.svg", "scan-length-dark.png", "layers-dark.svg", "scan-notes.txt"):
        (tmp_path / name).write_text("old")
    runner.run(options, RunOptions(), "report", tmp_path)
    names = ["layers-dark.svg", "report.html", "scan-notes.txt", "scan.csv", "scan.json", "scan.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_stopped_run_goes_on_where_it_was(parts, tmp_path):
    module, requests, options = parts
    module.stops_at, out = "second", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="--resume goes on"):
        runner.run(options, RunOptions(), "report", out)
    assert [path.name for path in out.iterdir()] == ["report.journal"]
    module.stops_at = None
    runner.run(options, RunOptions(resume=True), "report", out)
    assert requests == ["first", "second", "second"]
    assert not (out / "report.journal").exists()


def test_an_earlier_result_is_read_before_it_is_replaced(parts, tmp_path, result, monkeypatch):
    _, _, options = parts
    result["memory"][0]["peak_bytes"] *= 2
    (tmp_path / "scan.json").write_text(json.dumps(result))
    result["memory"][0]["peak_bytes"] //= 2
    monkeypatch.setattr(runner, "MEASURING", {"scan": "two_benchmarks"})
    page = runner.run({"scan": options["first"]}, RunOptions(compare=tmp_path), "scan", tmp_path)
    assert "less memory" in page.read_text()


def test_a_run_of_less_than_everything_leaves_the_full_results_alone(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(runner, "run", lambda *given: folders.append(given[-1]) or tmp_path / "report.html")
    for command in ("scan", "layers", "memory"):
        assert cli.main(["bench", command]) == 0
        assert cli.main(["bench", command, "--out", str(tmp_path)]) == 0
        assert folders[-2:] == [RunOptions().folder() / command, tmp_path]


def test_two_runs_do_not_share_a_folder(parts, tmp_path, monkeypatch):
    module, _, options = parts
    monkeypatch.setattr(lock, "WAIT_S", 0.0)
    inner = module.measure

    def measure(*given):
        with pytest.raises(InputError, match="another process is at work there"):
            runner.run(options, RunOptions(), "report", tmp_path)
        return inner(*given)

    module.measure = measure
    runner.run(options, RunOptions(), "report", tmp_path)


def test_a_reader_that_goes_away_leaves_whole_results_and_no_journal(parts, tmp_path, monkeypatch):
    _, _, options = parts

    def gone(*given):
        raise BrokenPipeError

    monkeypatch.setattr(runner, "show_tables", gone)
    with pytest.raises(BrokenPipeError):
        runner.run(options, RunOptions(), "report", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "scan.csv", "scan.json", "scan.md"]


@pytest.mark.parametrize("size", ["quick", "full"])
def test_all_benchmarks_are_one_run(size, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(runner, "run", lambda *given: runs.append(given) or tmp_path / "report.html")
    assert cli.main(["bench", "all", "--resume", *(["--full"] if size == "full" else [])]) == 0
    ((parts, how, stem, folder),) = runs
    assert list(parts) == list(runner.MEASURING) == ["scan", "layers", "memory"]
    assert all(options == getattr(type(options), size)() for options in parts.values())
    assert how.resume and stem == "report"
    assert folder == (how.folder() if size == "full" else how.folder() / "quick")

"""A study from end to end: what it leaves, what its report says, and how it goes on."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from ssmvdm import cli
from ssmvdm.reproduce.jobs import jobs_of, kept, loss_curve
from ssmvdm.reproduce.run import reproduce, timed
from ssmvdm.reproduce.study import parameters_of
from ssmvdm.reproduce.verdicts import quantities
from tests.reproduce.toy import TOY

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def carry_out(folder) -> list[tuple]:
    """Run the toy study; returns what was reported on the way."""
    told: list[tuple] = []
    assert reproduce(TOY, folder, lambda *progress: told.append(progress)) == folder / "reproduce.html"
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    told = carry_out(folder)
    assert len(told) == len(list(jobs_of(TOY))) + 2
    assert told[-1][1] == told[-1][2]
    return folder


@pytest.fixture(scope="module")
def result(folder):
    return json.loads((folder / "reproduce.json").read_text())


def test_every_layer_is_trained_with_every_seed(result):
    assert {(row["layer"], row["seed"]) for row in result["training"]} == {
        (layer, seed) for layer in TOY.contenders for seed in range(TOY.seeds)
    }
    for row in result["training"]:
        assert row["parameters"] == parameters_of(TOY.networks()[row["layer"]])
        assert [step for step, _ in row["curve"]] == [1, 2, 3]
        assert all(0 < loss < np.inf for _, loss in row["curve"])
        assert all(0 < loss < np.inf for loss in row["held_out"].values())


def test_a_step_is_measured_at_every_number_of_frames(result):
    assert {(row["layer"], row["frames"]) for row in result["costs"]} == {
        (layer, frames) for layer in TOY.contenders for frames in TOY.cost_frames
    }
    short, long = ([row for row in result["costs"] if row["frames"] == frames] for frames in TOY.cost_frames)
    for a, b in zip(short, long, strict=True):
        assert b["saved_bytes"] > 1.5 * a["saved_bytes"] > 0
        assert a["step_seconds"] > 0


def test_samples_are_judged_and_stamped(folder, result):
    frechet = result["frechet"]
    assert len(frechet["rows"]) == len(TOY.contenders) * TOY.seeds
    assert all(row["distance"] > 0 for row in frechet["rows"]) and frechet["floor"] > 0
    for name in ("reproduce.md", "reproduce.html"):
        assert "not comparable with published FVD" in (folder / name).read_text()
    for row in result["training"]:
        samples = np.load(folder / row["samples"], allow_pickle=False)
        assert samples.shape == (TOY.samples, 3, TOY.frames, TOY.network.size, TOY.network.size)
        assert 0 <= samples.min() <= samples.max() <= 1


def test_conclusions_come_from_the_numbers(result):
    told = result["conclusions"]
    assert [(entry["ours"], entry["theirs"]) for entry in told] == [("bi-s6", "s6"), ("bi-s6", "bi-s6/glu")]
    for entry in told:
        for finding in entry["findings"]:
            values = quantities(result)[finding["quantity"]]
            pairs = zip(values["bi-s6"], values[entry["theirs"]], strict=True)
            assert np.isclose(finding["mean"], np.mean([(a - b) / b for a, b in pairs]))


class Page(HTMLParser):
    """Visible text, sources of images, and whether tags match."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.sources, self.open = "", [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_says_everything(folder, result):
    text = (folder / "reproduce.html").read_text()
    page = Page(text)
    for conclusion in result["conclusions"]:
        for sentence in (conclusion["question"], *(finding["sentence"] for finding in conclusion["findings"])):
            assert sentence in page.text
            assert sentence in (folder / "reproduce.md").read_text()
    assert all(told in page.text for told in result["costs_in_words"])
    assert not re.search(r'(src|href)="(?!data:image/gif|#)', text.replace('xlink:href="#', 'href="#'))
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    panels = re.findall(r'<div class="panel (\w+)">(<svg.*?</svg>)\s*</div>', text, re.DOTALL)
    assert [theme for theme, _ in panels].count("light") == [theme for theme, _ in panels].count("dark") == 6
    for _, svg in panels:
        ElementTree.fromstring(re.sub(r"xlink:href", "href", svg))


def test_the_page_shows_real_clips_and_samples_of_each_layer(folder):
    sources = Page((folder / "reproduce.html").read_text()).sources
    assert len(sources) == 1 + len(TOY.contenders)
    for source in sources:
        content = base64.b64decode(source.removeprefix("data:image/gif;base64,"))
        assert Image.open(io.BytesIO(content)).n_frames == TOY.frames


def test_a_second_call_computes_what_is_missing_and_nothing_else(folder, result):
    results = sorted(folder.glob("*/result.json"))
    assert len(results) == len(list(jobs_of(TOY)))
    lost = folder / "training-bi-s6-1" / "result.json"
    before = {path: path.stat().st_mtime_ns for path in results}
    content = lost.read_text()
    lost.unlink()
    carry_out(folder)
    assert lost.read_text() == content  # the training run was still there; sampling and measuring it gives the same
    assert {path for path in results if path.stat().st_mtime_ns != before[path]} == {lost}
    again = json.loads((folder / "reproduce.json").read_text())
    assert again["wall_seconds"] > result["wall_seconds"]  # of both calls
    for name in ("training", "costs", "frechet", "conclusions", "costs_in_words"):
        assert again[name] == result[name]


def test_the_time_of_all_calls_is_told_or_none(tmp_path, monkeypatch):
    clock = iter([0.0, 7.0, 100.0, 102.0, 102.0, 500.0, 501.0, 501.0])
    monkeypatch.setattr("ssmvdm.reproduce.run.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), timed(tmp_path):
        raise KeyboardInterrupt
    with timed(tmp_path) as seconds:
        (tmp_path / "work").mkdir()
        assert seconds() == 9.0
        left = (tmp_path / "seconds.json").read_text()
    (tmp_path / "seconds.json").write_text(left)  # by a call that is killed
    for _ in range(2):
        with timed(tmp_path) as seconds:
            assert seconds() is None
        (tmp_path / "seconds.json").unlink(missing_ok=True)  # work of which there is no time


def test_a_result_of_other_settings_is_not_taken(tmp_path):
    path = tmp_path / "folder" / "result.json"
    assert kept(path, {"steps": (1, 2)}, lambda: {"value": 1}) == {"value": 1}
    assert kept(path, {"steps": (1, 2)}, lambda: {"value": 2}) == {"value": 1}
    assert kept(path, {"steps": (1, 3)}, lambda: {"value": 2}) == {"value": 2}
    assert kept(path, {"steps": (1, 3)}, lambda: {"value": 3}) == {"value": 2}


def test_a_loss_curve_has_a_hundred_points_at_most(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": float(step)}) + "\n" for step in range(1, 451)))
    curve = loss_curve(log, 450)
    assert len(curve) == 100
    assert all(step == loss for step, loss in curve)
    assert curve[0] == (3.0, 3.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_scale_of_a_gpu_needs_one(tmp_path, capsys):
    assert cli.main(["reproduce", "--scale", "gpu", "--out", str(tmp_path)]) == 2
    assert "--scale gpu: expected a CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

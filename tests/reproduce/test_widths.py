"""Layers at equal memory: what lies between widths, what is said of it, and a study of two widths from end to end."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from ssmvdm.reproduce.equal_memory import comparisons, values_at
from tests.reproduce.toy import TOY

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from ssmvdm.reproduce.widths import reproduce_widths

LABELS = {"s6": "S6", "bi-s6": "bi-S6"}


def row(layer: str, base_channels: int, saved_bytes: int, *losses: float) -> dict:
    values = {"held-out loss": list(losses)}
    place = {"layer": layer, "base_channels": base_channels, "saved_bytes": saved_bytes}
    return place | {"parameters": 1, "values": values}


def test_between_two_widths_a_layer_goes_straight_over_the_logarithm_of_memory():
    rows = [row("s6", 8, 100, 3.0, 8.0), row("s6", 16, 400, 2.0, 4.0), row("s6", 24, 900, 1.0, 0.0)]
    assert values_at(rows, "held-out loss", 200) == pytest.approx([2.5, 6.0])
    assert values_at(rows, "held-out loss", 600) == pytest.approx([1.5, 2.0])
    for kept, losses in ((100, [3.0, 8.0]), (400, [2.0, 4.0]), (900, [1.0, 0.0])):
        assert values_at(rows, "held-out loss", kept) == losses
    assert values_at(rows, "held-out loss", 99) is None and values_at(rows, "held-out loss", 901) is None


def test_seeds_are_compared_in_pairs_where_both_layers_keep_as_much():
    theirs = [row("s6", 8, 100 << 20, 2.0, 4.0), row("s6", 16, 400 << 20, 2.0, 4.0)]
    ours = [row("bi-s6", 8, 50 << 20, 9.0, 9.0), row("bi-s6", 16, 200 << 20, 1.0, 2.0)]
    (told,) = comparisons(theirs + ours, LABELS)
    assert (told["ours"], told["theirs"]) == ("bi-s6", "s6")
    (finding,) = told["findings"]
    assert (finding["base_channels"], finding["saved_bytes"], finding["mean"]) == (16, 200 << 20, -0.5)
    assert finding["verdict"] == "better"
    assert told["sentences"] == [finding["sentence"]]
    assert "bi-S6 at base width 16 is 50.0% below that of S6 keeping as much, 200.0 MiB" in finding["sentence"]


def test_without_memory_in_common_the_widest_is_compared_with_one_that_keeps_more():
    theirs = [row("s6", 16, 200 << 20, 9.0), row("s6", 8, 100 << 20, 2.0)]
    (told,) = comparisons([*theirs, row("bi-s6", 8, 25 << 20, 9.0), row("bi-s6", 16, 50 << 20, 1.0)], LABELS)
    first, second = told["sentences"]
    assert first == "At these widths bi-S6 keeps 25.0 to 50.0 MiB, S6 100.0 to 200.0 MiB."
    (finding,) = told["findings"]
    assert (finding["base_channels"], finding["mean"], finding["verdict"]) == (16, -0.5, "undecided")  # of one seed
    assert finding["sentence"] == second
    assert "bi-S6 at base width 16 is 50.0% below that of S6 at base width 8, which keeps more, 100.0 MiB" in second


def test_nothing_is_compared_with_a_layer_that_keeps_less_at_every_width():
    theirs = [row("s6", 8, 10 << 20, 2.0), row("s6", 16, 20 << 20, 2.0)]
    (told,) = comparisons([*theirs, row("bi-s6", 8, 25 << 20, 1.0), row("bi-s6", 16, 50 << 20, 1.0)], LABELS)
    assert told["findings"] == []
    assert told["sentences"] == ["At these widths bi-S6 keeps 25.0 to 50.0 MiB, S6 10.0 to 20.0 MiB."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widths")
    studies = [replace(TOY, contenders=("s6", "bi-s6"), network=TOY.network.of_width(width)) for width in (8, 16)]
    told: list[tuple] = []
    page = reproduce_widths(studies, folder, lambda *progress: told.append(progress))
    assert page == folder / "equal-memory.html"
    shares = [done / total for _, done, total in told]
    assert shares == sorted(shares) and shares[0] == 0 and math.isclose(shares[-1], 1)
    assert {what.split(":")[0] for what, _, _ in told} == {"width 8", "width 16"}
    return folder


def test_every_width_is_a_study_of_its_own(folder):
    result = json.loads((folder / "equal-memory.json").read_text())
    assert result["base_channels"] == [8, 16]
    assert [(row["layer"], row["base_channels"]) for row in result["rows"]] == [
        (layer, width) for layer in ("s6", "bi-s6") for width in (8, 16)
    ]
    for width in (8, 16):
        single = json.loads((folder / f"base-{width}" / "reproduce.json").read_text())
        for row in (row for row in result["rows"] if row["base_channels"] == width):
            runs = [run for run in single["training"] if run["layer"] == row["layer"]]
            assert row["values"]["held-out loss"] == [run["held_out"]["all"] for run in runs]
            assert {row["parameters"]} == {run["parameters"] for run in runs}
            (cost,) = (
                cost
                for cost in single["costs"]
                if (cost["layer"], cost["frames"]) == (row["layer"], single["study"]["frames"])
            )
            assert row["saved_bytes"] == cost["saved_bytes"]
    narrow, wide = (row for row in result["rows"] if row["layer"] == "bi-s6")
    assert wide["saved_bytes"] > 1.5 * narrow["saved_bytes"]
    distances = [row["values"]["Frechet distance"] for row in result["rows"]]
    assert np.isfinite(distances).all() and result["floor"] > 0


def test_the_page_and_the_markdown_say_everything(folder):
    result = json.loads((folder / "equal-memory.json").read_text())
    page, text = ((folder / f"equal-memory.{suffix}").read_text() for suffix in ("html", "md"))
    for told in result["conclusions"]:
        for sentence in (told["question"], *told["sentences"]):
            assert sentence in page and sentence in text
    assert "not comparable with published FVD" in page and "not comparable with published FVD" in text
    panels = re.findall(r'<div class="panel (\w+)">(<svg.*?</svg>)\s*</div>', page, re.DOTALL)
    assert [theme for theme, _ in panels] == ["light"] * 2 + ["dark"] * 2
    for _, svg in panels:
        ElementTree.fromstring(re.sub(r"xlink:href", "href", svg))

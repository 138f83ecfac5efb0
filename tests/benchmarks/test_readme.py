"""README.md and the result files say the same, word for word."""

import json
from dataclasses import dataclass

import pytest

from benchmarks.report import readme
from benchmarks.report.readme import README, Results, block, folder_of, rewritten

TEXT = README.read_text(encoding="utf-8")


def test_every_measured_passage_is_what_the_result_files_say():
    assert rewritten(TEXT, Results(folder_of(TEXT))) == TEXT


def test_the_files_that_are_linked_are_there():
    folder = README.parent / folder_of(TEXT)
    for name in readme.PASSAGES:
        passage = block(name, Results(folder_of(TEXT)))
        for link in passage.split("](")[1:]:
            assert (README.parent / link.split(")")[0]).exists()
    assert {"memory-light.svg", "memory-dark.svg"} <= {path.name for path in folder.iterdir()}


def test_the_table_of_kept_bytes_has_the_counts_of_the_results():
    """Its rows for other settings than the default are counted exactly by the tests of the network."""
    saved = Results(folder_of(TEXT))("memory")["saved"]
    counts = {row["frames"]: row["saved_bytes"] for row in saved if row["layer"] == "bi-s6"}
    (line,) = (line for line in TEXT.splitlines() if line.startswith('| `memory="lean"` |'))
    assert line.split("|")[2:5] == [f" {counts[frames] / 2**30:.2f} " for frames in (16, 64, 256)]


@dataclass
class Changed:
    """The real results with one file changed."""

    kind: str
    change: object
    real: Results

    @property
    def name(self):
        return self.real.name

    def link(self, *arguments):
        return self.real.link(*arguments)

    def __call__(self, kind):
        result = json.loads(json.dumps(self.real(kind)))
        if kind == self.kind:
            self.change(result)
        return result


def slower(result):
    for row in result["training"]:
        row["step_seconds"] = [7 * seconds for seconds in row.get("step_seconds", [])]


def costlier(result):
    result["modes"][0]["ratio"] = 9.87


def faster_rival(result):
    for row in result["times"]:
        if row["name"] == "sdpa-equal":
            row["ratio"] = 0.0123


def better(result):
    for row in result["training"]:
        if row["layer"] == "bi-s6":
            row["held_out"]["all"] /= 2


def far_better(result):
    result["conclusions"][0]["findings"][0]["mean"] = -0.987


@pytest.mark.parametrize(
    ("kind", "change", "passage"),
    [
        ("memory", slower, "training"),
        ("memory", costlier, "lean"),
        ("scan", faster_rival, "scan"),
        ("reproduce", better, "reproduce"),
        ("equal-memory", far_better, "equal"),
    ],
)
def test_other_results_make_another_readme(kind, change, passage):
    real = Results(folder_of(TEXT))
    before, after = block(passage, real), block(passage, Changed(kind, change, real))
    assert before in TEXT
    assert after not in TEXT
    others = [name for name in readme.PASSAGES if name != passage]
    if kind != "memory":
        assert [block(name, real) for name in others] == [block(name, Changed(kind, change, real)) for name in others]


@pytest.mark.parametrize("name", readme.PASSAGES)
def test_a_passage_that_is_missing_or_unknown_is_named(name):
    without = TEXT.replace(f"<!-- numbers: {name} -->", "")
    unknown = TEXT.replace(f"<!-- numbers: {name} -->", "<!-- numbers: bogus -->")
    for damaged in (without, unknown):
        with pytest.raises(ValueError, match=r"README\.md: expected the passages picture, training"):
            rewritten(damaged, Results(folder_of(TEXT)))


def test_results_of_less_than_everything_are_refused_in_words(tmp_path, monkeypatch):
    def without_base(result):
        del result["settings"]["shapes"]["base"]

    folder = folder_of(TEXT)
    changed = Changed("scan", without_base, Results(folder))
    with pytest.raises(ValueError, match=r"scan.json: expected results at the shape 'base'"):
        block("scan", changed)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(TEXT)
    with pytest.raises(SystemExit, match=r"README.md stays as it is: .*nowhere"):
        readme.main(["nowhere"])
    assert (tmp_path / "README.md").read_text() == TEXT

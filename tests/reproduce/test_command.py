"""`ssmvdm reproduce`: which study it carries out, where, and what it says when that does not end well."""

import pytest

from ssmvdm import cli
from ssmvdm.reproduce import run, widths
from ssmvdm.reproduce.study import ablation, study_named

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture
def carried_out(monkeypatch):
    """The studies that were carried out, and their folders; each leaves a page."""
    calls = []

    def reproduce(study, folder, advance):
        calls.append((study, folder))
        advance("a job", 1, 1)
        (folder / "reproduce.html").write_text("<html>")
        return folder / "reproduce.html"

    monkeypatch.setattr(run, "reproduce", reproduce)
    return calls


def test_the_study_lies_below_the_folder_under_its_scale(carried_out, tmp_path, capsys):
    assert cli.main(["reproduce", "--out", str(tmp_path)]) == 0
    assert carried_out == [(study_named("cpu"), tmp_path / "cpu")]
    assert str(tmp_path / "cpu" / "reproduce.html") in capsys.readouterr().out


def test_an_ablation(carried_out, tmp_path, capsys):
    changes = ["--layers", "bi-s6/gss", "--frames", "4", "--seeds", "1"]
    assert cli.main(["reproduce", *changes, "--out", str(tmp_path)]) == 0
    assert carried_out == [(ablation(study_named("cpu"), ("bi-s6/gss",), frames=4, seeds=1), tmp_path / "cpu")]
    assert cli.main(["reproduce", "--layers", "lstm", "--out", str(tmp_path / "other")]) == 2
    assert "unknown layer 'lstm'" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_several_widths(monkeypatch, tmp_path, capsys):
    calls = []

    def reproduce_widths(studies, folder, advance):
        calls.append((studies, folder))
        return folder / "equal-memory.html"

    monkeypatch.setattr(widths, "reproduce_widths", reproduce_widths)
    assert cli.main(["reproduce", "--base-channels", "16", "8", "--out", str(tmp_path)]) == 0
    assert calls == [([ablation(study_named("cpu"), base_channels=width) for width in (8, 16)], tmp_path / "cpu")]
    assert str(tmp_path / "cpu" / "equal-memory.html") in capsys.readouterr().out
    assert cli.main(["reproduce", "--base-channels", "8", "8", "--out", str(tmp_path / "other")]) == 2
    assert "base channels: the same twice in 8, 8" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (ValueError("runs of another study"), 2, "runs of another study"),
        (KeyboardInterrupt(), 130, "the same command goes on in"),
    ],
)
def test_what_stops_it_is_one_line(monkeypatch, tmp_path, capsys, raised, status, said):
    def stopped(*_):
        raise raised

    monkeypatch.setattr(run, "reproduce", stopped)
    assert cli.main(["reproduce", "--out", str(tmp_path)]) == status
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1] and not any("Traceback" in line for line in lines)

"""`python -m ssmvdm_kernels.check` says by its exit status that a backend is wrong; packaging/test_installed.py damages
each tensor of the scans in turn."""

import pytest

from ssmvdm_kernels import check
from tests.conftest import require_backend


def raises(y):
    raise RuntimeError("the device is gone")


SPOILT = {"slightly wrong": lambda y: y * (1 + 1e-5), "an exception": raises}


@pytest.fixture
def few_modes(monkeypatch):
    require_backend("cpu")
    monkeypatch.setattr(check, "SCAN_MODES", ("reverse",))
    monkeypatch.setattr(check, "CONV_MODES", ("two filters",))


@pytest.mark.usefixtures("few_modes")
@pytest.mark.parametrize("how", SPOILT)
def test_a_wrong_result_fails_its_row_and_no_other(how, monkeypatch):
    right = check.bidirectional_conv1d

    def wrong(backend, **tensors):
        found = right(backend=backend, **tensors)
        return found if backend == "reference" else (found[0], SPOILT[how](found[1]))

    monkeypatch.setattr(check, "bidirectional_conv1d", wrong)
    rows = list(check.check_backend("cpu", "cpu", ("float32",)))
    assert [row.operator for row in rows if not row.has_passed] == ["conv1d"] and len(rows) == 3


@pytest.mark.usefixtures("few_modes")
@pytest.mark.parametrize(
    ("passes", "status", "words"), [((True,), 0, "All 1 rows"), ((True, False), 1, "FAILED: 1 of 2 rows")]
)
def test_the_exit_status_says_whether_all_rows_passed(passes, status, words, monkeypatch, capsys):
    rows = [check.Row("scan", "sum", "float32", "y", error=0.5 if passed else 2.0) for passed in passes]
    monkeypatch.setattr(check, "BACKENDS", {"cpu": ("cpu",), "cuda": ()})
    monkeypatch.setattr(check, "check_backend", lambda *_: iter(rows))
    assert check.main([]) == status
    assert words in capsys.readouterr().out


def test_nothing_to_check_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(check, "available_backends", tuple)
    assert check.main([]) == 1
    printed = capsys.readouterr().out
    assert "cpu on cpu: not checked" in printed and "Nothing was checked" in printed


@pytest.mark.parametrize("here", [("cpu",), ("cpu", "cuda")])
def test_a_backend_that_is_named_has_to_be_here(here, monkeypatch, capsys):
    """On a device that is here; one that no name asks for may be missing."""
    monkeypatch.setattr(check, "BACKENDS", {"cpu": ("cpu", "cuda")})
    monkeypatch.setattr(check, "available_backends", lambda: here)
    monkeypatch.setattr(check, "storage_types", lambda *_: ["float32"])
    monkeypatch.setattr(check, "check_backend", lambda *_: iter([check.Row("scan", "sum", "float32", "y")]))
    assert check.main([]) == 0
    capsys.readouterr()
    assert check.main(["--backend", "cpu", "cuda"]) == (0 if "cuda" in here else 1)
    assert ("FAILED: no cuda here" in capsys.readouterr().out) == ("cuda" not in here)

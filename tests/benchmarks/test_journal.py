"""The journal of a run: what is recorded is not measured again, and only where it belongs."""

import json

import pytest

from benchmarks.measure.journal import Journal
from ssmvdm.errors import InputError
from ssmvdm.report.environment import stamp

STAMP = {"device": "this one", "threads": 2}


class Measured:
    """Counts its calls; the answer names the request."""

    def __init__(self, status="ok"):
        self.requests, self.status = [], status

    def __call__(self, request):
        self.requests.append(request)
        return {"status": self.status, "of": request["task"]}


def test_an_equal_request_is_measured_once_and_after_resuming_not_at_all(tmp_path):
    path, measure = tmp_path / "a.journal", Measured()
    journal = Journal(path, STAMP, resume=False)
    first = journal.answer({"task": "a", "n": 1}, measure)
    assert journal.answer({"n": 1, "task": "a"}, measure) == first == {"status": "ok", "of": "a"}
    journal.answer({"task": "a", "n": 2}, measure)
    assert [request["n"] for request in measure.requests] == [1, 2]
    again = Journal(path, STAMP, resume=True)
    assert again.answer({"task": "a", "n": 1}, measure) == first
    assert len(measure.requests) == 2
    recorded = [json.loads(line) for line in path.read_text().splitlines()]
    assert recorded[0] == {"stamp": STAMP}
    assert again.spared_seconds == recorded[1]["seconds"] > 0


def test_without_resume_the_journal_is_begun_anew(tmp_path):
    path, measure = tmp_path / "a.journal", Measured()
    Journal(path, {"device": "another"}, resume=False).answer({"task": "a"}, measure)
    Journal(path, STAMP, resume=False).answer({"task": "a"}, measure)
    assert len(measure.requests) == 2
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(("status", "calls"), [("error", 2), ("out of memory", 1), ("timeout", 1), ("gate failed", 1)])
def test_only_errors_are_measured_again(tmp_path, status, calls):
    measure = Measured(status)
    for resume in (False, True):
        Journal(tmp_path / "a.journal", STAMP, resume).answer({"task": "a"}, measure)
    assert len(measure.requests) == calls


def test_a_torn_line_is_not_there(tmp_path):
    path, measure = tmp_path / "a.journal", Measured()
    journal = Journal(path, STAMP, resume=False)
    journal.answer({"task": "a"}, measure)
    journal.answer({"task": "b"}, measure)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    again = Journal(path, STAMP, resume=True)
    again.answer({"task": "a"}, measure)
    assert len(measure.requests) == 2
    again.answer({"task": "b"}, measure)
    assert len(measure.requests) == 3
    assert [json.loads(line)["request"]["task"] for line in path.read_text().splitlines()[1:]] == ["a", "b"]


def test_a_run_with_nothing_to_resume_begins(tmp_path):
    measure = Measured()
    Journal(tmp_path / "a.journal", STAMP, resume=True).answer({"task": "a"}, measure)
    assert len(measure.requests) == 1


def test_the_journal_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "a.journal"
    Journal(path, STAMP, resume=False)
    before = path.read_bytes()
    with pytest.raises(InputError, match="belongs to another run: threads was 2 and is 1, commit was None and is 'c'"):
        Journal(path, {"device": "this one", "threads": 1, "commit": "c"}, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"{}\n", b"[]\n", b'{"stamp": {}}\n{"answer": 3}\n', b"text\n", b"[" * 100_000 + b"\n"]
)
def test_a_file_that_is_no_journal_is_refused(tmp_path, content):
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not the journal of a run"):
        Journal(path, STAMP, resume=True)
    assert path.read_bytes() == content


def test_an_interrupted_measurement_leaves_no_line(tmp_path):
    def interrupted(request):
        raise KeyboardInterrupt

    journal = Journal(tmp_path / "a.journal", STAMP, resume=False)
    with pytest.raises(KeyboardInterrupt):
        journal.answer({"task": "a"}, interrupted)
    assert len((tmp_path / "a.journal").read_text().splitlines()) == 1
    journal.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_stamp_of_a_run_names_where_it_is():
    assert stamp() == stamp()
    assert {"device", "commit", "torch"} <= stamp().keys()

"""The command line: what it writes, and one clear line with a non-zero status for everything it cannot do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.readme import README, folder_of
from ssmvdm import cli
from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of the command in this process."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "bench, convert, data, info"),
        (["bench"], "all, scan, layers, memory, report"),
        (["nonsense"], "nonsense"),
        (["bench", "memory", "--layers", "lstm"], "--layers: unknown layer 'lstm'; expected some of attention-einsum"),
        (["bench", "memory", "--layers"], "--layers"),
        (["bench", "memory", "--layers", "bi-s6", "bi-s6"], "--layers: the same value twice"),
        (["bench", "memory", "--frames", "0"], "--frames: expected a whole number of at least 1, got 0"),
        (["bench", "memory", "--frames", "16", "-4"], "--frames"),
        (["bench", "memory", "--frames", "many"], "--frames"),
        (["bench", "memory", "--frames", "1.5"], "--frames"),
        (["bench", "memory", "--repeats", "0"], "--repeats"),
        (["bench", "memory", "--threads", "0"], "--threads"),
        (["bench", "memory", "--size", "12"], "size: expected a multiple of 8, at least 8, got 12"),
        (["bench", "memory", "--base-channels", "0"], "base channels"),
        (["bench", "memory", "--memory-limit-gib", "-1"], "--memory-limit-gib"),
        (["bench", "memory", "--memory-limit-gib", "nan"], "--memory-limit-gib"),
        (["bench", "memory", "--bogus"], "--bogus"),
        (["bench", "scan", "--dtypes", "int8"], "--dtypes: unknown 'int8'"),
        (["bench", "scan", "--layouts", "diagonal"], "--layouts"),
        (["bench", "scan", "--rivals", "lstm"], "--rivals"),
        (["bench", "scan", "--shapes", "base3"], "--shapes: unknown shape 'base3'; expected SEQUENCESxLENGTHxCHANNELS"),
        (["bench", "scan", "--shapes", "base", "base"], "--shapes: the same value twice"),
        (["bench", "scan", "--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (["bench", "scan", "--threads", "0"], "--threads: expected whole numbers of at least 1, got 0"),
        (["bench", "scan", "--budget-seconds", "nan"], "--budget-seconds"),
        (["bench", "all", "--compare", "nowhere.json"], "cannot read nowhere.json"),
        (["bench", "all", "--compare", "."], "--compare: expected a result of scan or layers or memory"),
        (["data", "movies"], "movies"),
        (["data", "maze", "--frames", "0"], "--frames: expected a whole number of at least 1, got 0"),
        (["data", "maze", "--size", "1"], "--size"),
        (["data", "maze", "--seed", "-1"], "--seed"),
        (["data", "maze", "--fps", "0"], "--fps"),
        (["data", "maze", "--fps", "nan"], "--fps"),
        (["data", "maze", "--scale", "0"], "--scale"),
        (["data", "maze", "--out", "clip.mp4"], "--out: expected a file name ending in .gif or .npy"),
        (["data", "maze", "--batch", "1000000000"], "GiB of memory"),
        (["data", "maze", "--frames", "1000000000"], "--frames and size: expected a clip of at most 2,147,483,648"),
    ],
)
def test_bad_input_gets_one_line_and_status_two(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("ssmvdm: error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_a_complaint_is_one_sentence_where_the_output_takes_ascii_alone():
    arguments = ["train", "cpu-demo", "--data.frames", "0", "--dry-run"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ssmvdm.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "ssmvdm: error: data: frames: expected a whole number of at least 1, got 0; see --help\n"


@pytest.mark.parametrize("command", ["all", "memory", "layers", "scan"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(capsys, tmp_path, command):
    (tmp_path / "file").write_text("in the way")
    status, _, err = run(capsys, "bench", command, "--out", tmp_path / "file" / "results")
    assert status == 2
    assert err.count("\n") == 1
    assert "cannot write results to" in err
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b"{}", "is not a result"),
        (b'{"schema": 1, "kind": "memory"}', "is not a result"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_result_that_is_none_is_refused(capsys, tmp_path, content, expected):
    path = tmp_path / "memory.json"
    path.write_bytes(content)
    status, out, err = run(capsys, "bench", "report", path)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err
    assert [file.name for file in tmp_path.iterdir()] == ["memory.json"]


def test_a_result_that_is_missing_is_refused(capsys, tmp_path):
    status, _, err = run(capsys, "bench", "report", tmp_path / "none.json")
    assert status == 2
    assert "cannot read" in err


def test_a_report_is_of_different_kinds(capsys, tmp_path):
    status, _, err = run(capsys, "bench", "report")
    assert status == 2 and "expected results of different kinds, got none" in err
    paths = [README.parent / folder_of(README.read_text(encoding="utf-8")) / "scan.json"] * 2
    status, _, err = run(capsys, "bench", "report", *paths, "--out", tmp_path)
    assert status == 2 and "expected results of different kinds, got scan, scan" in err
    assert list(tmp_path.iterdir()) == []


def test_data_writes_arrays(capsys, tmp_path):
    path = tmp_path / "clips.npy"
    status, out, _ = run(capsys, "data", "maze", "--out", path, "--frames", 4, "--size", 16, "--batch", 2)
    assert status == 0
    assert out.strip() == str(path)
    assert np.load(path, allow_pickle=False).shape == (2, 3, 4, 16, 16)


@pytest.mark.parametrize("kind", ["maze", "shapes"])
def test_data_writes_pictures(capsys, tmp_path, kind):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    status, _, _ = run(capsys, "data", kind, "--out", tmp_path / "a.gif", "--frames", 3, "--size", 16)
    assert status == 0
    with image_module.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3


def test_data_into_a_missing_folder_is_refused(capsys, tmp_path):
    status, _, err = run(capsys, "data", "maze", "--out", tmp_path / "no" / "a.npy", "--frames", 2, "--size", 8)
    assert status == 2
    assert "cannot write" in err
    assert err.count("\n") == 1


def test_info_is_text_or_json(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert "torch" in out
    status, out, _ = run(capsys, "info", "--json")
    assert status == 0
    assert json.loads(out)


@pytest.mark.parametrize(
    "arguments", [[], ["bench"], *(["bench", kind] for kind in ("all", "scan", "layers", "memory")), ["data"], ["info"]]
)
def test_help_is_there_and_says_something(capsys, arguments):
    status, out, err = run(capsys, *arguments, "--help")
    assert status == 0
    assert err == ""
    assert len(out) > 200


def test_optional_packages_that_are_missing_are_named_with_their_remedy():
    need(train=("numpy",), eval=("torch", "numpy"))
    remedy = r"needs no_such_package and nor_this: pip install 'ssmvdm-kernels\[bench,eval\]'"
    with pytest.raises(InputError, match=remedy):
        need(bench=("numpy", "no_such_package"), train=("torch",), eval=("nor_this",))


def test_commands_ask_for_extras_that_exist():
    root = Path(cli.__file__).parents[1]
    extras = set(re.findall(r"^([\w-]+) = \[\"", (root / "pyproject.toml").read_text(), re.MULTILINE))
    calls = [call for path in (root / "ssmvdm" / "commands").glob("*.py")
             for call in re.findall(r"\bneed\((.+)\)", path.read_text()) if "=" in call]  # fmt: skip
    asked = {extra for call in calls for extra in re.findall(r"(\w+)=\(", call)}
    assert len(calls) >= 9
    assert asked == {"train", "video", "bench", "eval"} <= extras


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_an_interrupted_run_leaves_its_journal_alone_and_goes_on_from_it(tmp_path):
    command = [sys.executable, "-m", "ssmvdm.cli", "bench", "memory", "--out", str(tmp_path), "--frames", "64"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    journal = tmp_path / "memory.journal"
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "ssmvdm: interrupted: the same command with --resume goes on"
    assert [path.name for path in tmp_path.iterdir()] == ["memory.journal"]
    assert not children_of(process.pid)
    assert journal.read_bytes().count(b"\n") > 1


def children_of(pid: int) -> list[str]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return found.stdout.split()

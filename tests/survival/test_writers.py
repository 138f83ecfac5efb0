"""Whatever writes files leaves the old ones or the new ones when it is killed at any operation, in the middle of a
write, or when the disk is full; never a broken one. After that the same call does its work.

A writer has an earlier and a later version of its files, and says what it finds. Kills are by signal in a forked
child: at its n-th operation on files, or by the kernel at the byte that a file may not exceed. The same limit stands
for a full disk where the signal is ignored; where a small file system can be mounted, there is one that is really full.
Checkpoints have tests of their own (training/test_checkpoint.py, training/test_killed.py).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measure.journal import Journal
from ssmvdm import run_log
from ssmvdm.data import export, sheets
from ssmvdm.evaluation import report
from ssmvdm.evaluation.features import CachedFeatures
from ssmvdm.reproduce import jobs
from ssmvdm.reproduce import run as reproduce
from ssmvdm.sample_folder import SampleFolder, file_name

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")
FULL = 3  # exit status of a child that met a full disk
MADE_BY = {"weights_sha256": "0" * 64, "sampler": "ddpm", "steps": None, "seed": 3}


@dataclass(frozen=True)
class Writer:
    """write(folder, version) with version 0, then 1. found(folder): what a reader gets, raising for a broken file."""

    write: Callable[[Path, int], Any]
    found: Callable[[Path], Any]


def clips(version: int) -> np.ndarray:
    return np.random.default_rng(version).random((2, 3, 4, 16, 16), dtype=np.float32)


def bytes_of(name: str) -> Callable[[Path], bytes]:
    return lambda folder: (folder / name).read_bytes()


def records(version: int) -> list[dict]:
    """Of a run that was killed after step 40; the later version goes on from step 20."""
    return [{"step": step, "loss": 0.5} for step in range(1, 41 if version == 0 else 21)]


def write_log(folder: Path, version: int) -> None:
    if version == 0:
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(0)))
    else:
        run_log.RunLog(folder, 20).close()


def extended_log(folder: Path, version: int) -> None:
    log = run_log.RunLog(folder, 0 if version == 0 else 40)
    for step in range(1 + 40 * version, 41 + 40 * version):
        log.write({"step": step, "loss": 0.5})
    log.close()


def read_steps(folder: Path) -> int:
    """How far the log goes; every line before has its step."""
    steps = [record["step"] for record in run_log.read_log(folder / "log.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    return len(steps) // 40


def drawn(indices, progress=iter):
    return np.stack([np.full((3, 2, 8, 8), index, np.float32) for index in indices])


def write_samples(folder: Path, version: int) -> None:
    samples = SampleFolder.open(folder / "samples", MADE_BY, "run")
    list(samples.do(samples.work(2 + 2 * version, 1), drawn))


def whole_samples(folder: Path) -> bool:
    """Whether there are more than at first. Those that the record names are what it says; no other is taken for one."""
    samples = SampleFolder.open(folder / "samples", MADE_BY, "run")
    missing = samples.work(4, 1).missing
    for index in set(range(4)) - missing:
        assert np.array_equal(samples.video(index), drawn([index])[0])
    assert {file_name(index) for index in samples.digests} <= {path.name for path in samples.path.iterdir()}
    return not missing


class Doubled:
    """A feature extractor."""

    name, stamp, details, identity = "doubled", None, {}, "0" * 64

    def features(self, videos: np.ndarray) -> np.ndarray:
        return 2.0 * videos.reshape(len(videos), -1)[:, :8].astype(np.float64)


def write_features(folder: Path, version: int) -> None:
    for earlier in range(version + 1):
        cache = CachedFeatures(Doubled(), folder)
        cache.features(clips(earlier))
        cache.save()


def known_features(folder: Path) -> int:
    """How many versions' features come from the cache; a damaged one warns, which is an error here."""
    hits = []
    for version in range(2):
        cache = CachedFeatures(Doubled(), folder)
        assert np.array_equal(cache.features(clips(version)), Doubled().features(clips(version)))
        hits.append(cache.hits == len(clips(version)))
    assert hits[0]
    return sum(hits)


def write_journal(folder: Path, version: int) -> None:
    """A run of 20 measurements, and one that goes on with it."""
    journal = Journal(folder / "journal", {"commit": "0"}, resume=version == 1)
    for number in range(20 * version, 20 + 20 * version):
        journal.answer({"number": number}, lambda request: {"status": "ok", "answer": 2 * request["number"]})


def journalled(folder: Path) -> int:
    """A resumed run measures nothing of the first 20 again, and gets the right answers."""
    shutil.copy(folder / "journal", folder / "copy")
    journal, measured = Journal(folder / "copy", {"commit": "0"}, resume=True), []
    for number in range(40):
        answer = {"status": "ok", "answer": 2 * number}
        assert journal.answer({"number": number}, lambda _, n=number, a=answer: measured.append(n) or a) == answer
    (folder / "copy").unlink()
    assert not measured or measured[0] >= 20
    return not measured


WRITERS = {
    "npy": Writer(lambda folder, version: export.write_npy(folder / "x.npy", clips(version)),
                  lambda folder: np.load(folder / "x.npy", allow_pickle=False).tobytes()),
    "gif": Writer(lambda folder, version: export.write_gif(folder / "x.gif", clips(version)), bytes_of("x.gif")),
    "mp4": Writer(lambda folder, version: export.write_mp4(folder / "x.mp4", clips(version)), bytes_of("x.mp4")),
    "png": Writer(lambda folder, version: sheets.write_slices(folder / "x.png", clips(version)), bytes_of("x.png")),
    "page of a study": Writer(lambda folder, version: reproduce.write(folder / "x.html", f"{version}" * 9000),
                              bytes_of("x.html")),
    "job of a study": Writer(
        lambda folder, version: jobs.kept(folder / "job.json", {"v": version}, lambda: {"x": [version] * 2000}),
        lambda folder: json.loads((folder / "job.json").read_text()),
    ),
    "evaluation": Writer(
        lambda folder, version: report.write_all({"runs": [{"consistency": None}], "x": [version] * 2000}, folder),
        lambda folder: json.loads((folder / "evaluation.json").read_text()),
    ),
    "log gone on with": Writer(write_log, lambda folder: run_log.read_log(folder / "log.jsonl")),
    "log written to": Writer(extended_log, read_steps),
    "samples": Writer(write_samples, whole_samples),
    "feature cache": Writer(write_features, known_features),
    "journal": Writer(write_journal, journalled),
}  # fmt: skip


@pytest.fixture(params=WRITERS)
def writer(request, monkeypatch) -> Writer:
    monkeypatch.setattr(run_log, "_tensorboard", lambda folder, step: None)  # its files are for the eye
    monkeypatch.setattr(report, "as_markdown", lambda result: "")
    return WRITERS[request.param]


@pytest.fixture
def before(writer, tmp_path) -> Path:
    """A folder with the earlier version, written where nothing goes wrong; and the later one beside it."""
    for name, versions in (("before", (0,)), ("after", (0, 1))):
        (tmp_path / name).mkdir()
        for version in versions:
            writer.write(tmp_path / name, version)
    return tmp_path / "before"


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a forked child that does this; negative: the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of libraries, of which none is at work
        child = os.fork()
    if child == 0:
        try:
            work()
        except OSError as error:
            os._exit(FULL if error.errno is not None and error.filename else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(operation: int) -> None:
    """The process ends at the n-th operation on files from now on."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        seen += event in OPERATIONS
        if seen == operation and event in OPERATIONS:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def limited(size: int, is_fatal: bool) -> None:
    """No file may grow beyond so many bytes: the write is cut there, and the process killed or told."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if is_fatal else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def check(writer: Writer, folder: Path, before: Path) -> None:
    """Old or new, and the same call does its work now."""
    old, new = writer.found(before), writer.found(before.with_name("after"))
    assert old != new
    assert writer.found(folder) in (old, new)
    assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.is_file()], "taken for whole"
    writer.write(folder, 1)
    assert writer.found(folder) == new


def tries(before: Path) -> Iterator[Path]:
    """Copies of the earlier version."""
    for number in range(1, 1000):
        yield shutil.copytree(before, before.with_name(f"try-{number}"))


def limits(folder: Path) -> set[int]:
    """Bytes at which a write is cut: in the first file system block, in the middle, just before the end."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {cut for size in sizes for cut in (0, 1, size // 2, size - 1)}


@pytest.mark.filterwarnings("error")
def test_a_kill_at_any_operation_leaves_old_or_new_files(writer, before):
    for number, folder in enumerate(tries(before), 1):
        status = in_child(lambda number=number, folder=folder: (killed_at(number), writer.write(folder, 1)))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        check(writer, folder, before)
    assert number > 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("is_fatal", [True, False], ids=["killed", "full"])
def test_a_write_that_is_cut_leaves_old_or_new_files(writer, before, is_fatal):
    ends = set()
    for size, folder in zip(sorted(limits(before.with_name("after"))), tries(before), strict=False):
        ends.add(in_child(lambda size=size, folder=folder: (limited(size, is_fatal), writer.write(folder, 1))))
        check(writer, folder, before)
        if not is_fatal:
            assert not [path for path in folder.rglob(".*") if path.is_file()], "half a file was left"
    assert (-signal.SIGXFSZ if is_fatal else FULL) in ends
    assert ends <= {-signal.SIGXFSZ if is_fatal else FULL, 0}


def test_an_array_that_was_cut_short_in_silence(tmp_path):
    """So small that the C library had all of it in a buffer, and wrote it when np.save no longer listened."""
    array = np.zeros(1000, np.uint8)
    path = tmp_path / "x.npy"
    assert in_child(lambda: (limited(600, False), export.write_npy(path, array))) == FULL
    assert not path.exists()
    for made in (array, np.zeros((2, 0, 3)), np.arange(6.0).reshape(2, 3).T):
        export.write_npy(path, made)
        read = np.load(path, allow_pickle=False)
        assert np.array_equal(read, made) and read.dtype == made.dtype and read.shape == made.shape


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own with nothing left but what the earlier version may need."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.filterwarnings("error")
def test_a_full_disk_leaves_old_files_and_says_so(writer, before, full_disk):
    folder = shutil.copytree(before, full_disk / "files")
    filler = full_disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert in_child(lambda: writer.write(folder, 1)) == FULL
    filler.unlink()
    check(writer, folder, before)

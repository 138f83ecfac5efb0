"""Checkpoints come back as they were, or not at all and with a reason."""

import errno
import json
import os
import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssmvdm import checkpoint
from ssmvdm.checkpoint import CheckpointError
from tests.training.test_hostile import Forger
from tests.training.tiny import RUN, same, state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path, position: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_state_comes_back_to_the_bit_and_older_ones_go(tmp_path):
    for step in (1, 2, 10):
        path = checkpoint.save(tmp_path, state(step), keep=2)
        assert path == tmp_path / f"step-{step}"
    assert names(tmp_path) == ["step-10", "step-2"]
    found = checkpoint.load_newest(tmp_path)
    assert found.path == path and found.refused == ()
    assert same(found.state, state(10)) and found.state.config == RUN


def test_scaler_of_fp16_comes_back(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=3.5).state_dict()
    path = checkpoint.save(tmp_path, replace(state(1), scaler=scaler))
    assert checkpoint.load(path).scaler == scaler


def test_processes_come_back_and_may_be_unknown(tmp_path):
    path = checkpoint.save(tmp_path / "known", replace(state(1), processes=3))
    assert checkpoint.load(path).processes == 3
    path = checkpoint.save(tmp_path / "unknown", state(1))
    facts = json.loads((path / checkpoint.FACTS).read_bytes())
    del facts["processes"]
    Forger(path).put(checkpoint.FACTS, checkpoint._json(facts))
    assert checkpoint.load(path).processes is None and same(checkpoint.load(path), state(1))


def test_load_model_takes_a_run_a_folder_of_checkpoints_or_one(tmp_path):
    path = checkpoint.save(tmp_path / "checkpoints", state(3))
    for place in (tmp_path, tmp_path / "checkpoints", path):
        model, config = checkpoint.load_model(place)
        assert config == RUN and not model.training
        assert all(torch.equal(value, state(3).ema[name]) for name, value in model.state_dict().items())
    model, _ = checkpoint.load_model(path, "online")
    assert all(torch.equal(value, state(3).model[name]) for name, value in model.state_dict().items())
    run = shutil.copytree(tmp_path, tmp_path.parent / "named" / "step-5")  # a run, whatever it is called
    assert checkpoint.load_model(run)[1] == RUN
    copied = path.rename(tmp_path / "kept under another name")
    assert checkpoint.load_model(copied)[1] == RUN


def test_the_newest_whole_one_is_taken_and_the_others_named(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step), keep=3)
    damage(tmp_path / "step-3" / checkpoint.OPTIMIZER)
    (tmp_path / "step-2" / checkpoint.EMA).unlink()
    found = checkpoint.load_newest(tmp_path)
    assert same(found.state, state(1))
    assert [reason.split(": ")[0] for reason in found.refused] == [
        str(tmp_path / "step-3" / checkpoint.OPTIMIZER), str(tmp_path / "step-2" / checkpoint.EMA)
    ]  # fmt: skip
    with pytest.warns(UserWarning, match=r"step-3.*SHA-256.*step-2"):
        model, _ = checkpoint.load_model(tmp_path)
    assert torch.equal(model.output_conv.weight, state(1).ema["output_conv.weight"])
    damage(tmp_path / "step-1" / checkpoint.MODEL)
    with pytest.raises(CheckpointError, match=r"step-3.*step-2.*step-1"):
        checkpoint.load_newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"step-3.*step-2.*step-1"):
        checkpoint.load_model(tmp_path)


def test_nothing_there(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.load_newest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(ValueError, match="weights must be 'ema' or 'online', got 'best'"):
        checkpoint.load_model(tmp_path, "best")


def test_a_damaged_checkpoint_of_the_same_step_is_replaced_and_a_whole_one_left(tmp_path):
    path = checkpoint.save(tmp_path, state(5))
    before = (path / checkpoint.MODEL).stat().st_ino
    checkpoint.save(tmp_path, state(5))
    assert (path / checkpoint.MODEL).stat().st_ino == before
    damage(path / checkpoint.MODEL)
    checkpoint.save(tmp_path, state(5))
    assert same(checkpoint.load(path), state(5)) and names(tmp_path) == ["step-5"]


def test_flipped_and_truncated_bytes_are_all_detected(tmp_path):
    path = checkpoint.save(tmp_path, state(1))
    contents = {name: (path / name).read_bytes() for name in (*checkpoint.FILES, checkpoint.MANIFEST)}
    draw, undetected = random.Random(0), []
    for case in range(2000):
        name = draw.choice(tuple(contents))
        content = bytearray(contents[name])
        position = draw.randrange(len(content))
        if case % 4 == 0:
            del content[position:]
        else:
            content[position] ^= 1 << draw.randrange(8)
        (path / name).write_bytes(content)
        try:
            checkpoint.verify(path)
            undetected.append((name, position))
        except CheckpointError:
            pass
        (path / name).write_bytes(contents[name])
    assert undetected == []
    checkpoint.verify(path)


# -- faults ------------------------------------------------------------------------------------------------------------


CUT = 2**16  # bytes that are written in one go


class Killed(BaseException):
    """What stops a process at once, as far as Python code can tell."""


class Faults:
    """Lets the n-th operation on files fail: opening, half of a write, fsync or rename. Nothing waits for the disk."""

    def __init__(self, monkeypatch, at: int, failure: BaseException):
        self.at, self.failure, self.seen = at, failure, []
        monkeypatch.setattr(os, "fsync", self.counted("fsync", lambda descriptor: None))
        monkeypatch.setattr(os, "rename", self.counted("rename", os.rename))
        monkeypatch.setattr(checkpoint, "open", self.open, raising=False)

    def meet(self, name: str) -> None:
        self.seen.append(name)
        if len(self.seen) == self.at:
            raise self.failure

    def counted(self, name: str, operation):
        def call(*arguments):
            self.meet(name)
            return operation(*arguments)

        return call

    def open(self, path, mode, buffering=-1):
        if "x" not in mode:
            return open(path, mode, buffering)
        self.meet("open")
        file = open(path, mode, buffering)
        faults, write = self, file.write

        class Half:
            def __enter__(self):
                return self

            def __exit__(self, *exception):
                file.close()

            def fileno(self):
                return file.fileno()

            def write(self, data):
                written = write(data[: max(len(data) // 2, CUT)])
                faults.meet("write")
                return written

        return Half()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), Killed()], ids=["full", "kill"])
def test_a_fault_at_any_operation_leaves_a_whole_checkpoint(tmp_path, monkeypatch, failure):
    checkpoint.save(tmp_path / "before", state(1))
    shutil.copytree(tmp_path / "before", tmp_path / "count")
    with monkeypatch.context() as patch:
        seen = Faults(patch, at=0, failure=failure).seen
        checkpoint.save(tmp_path / "count", state(2), keep=1)
    assert {"open", "write", "fsync", "rename"} == set(seen)
    for at in range(1, len(seen) + 1):
        folder = tmp_path / f"at-{at}"
        shutil.copytree(tmp_path / "before", folder)
        with monkeypatch.context() as patch, pytest.raises(type(failure)):
            Faults(patch, at, failure)
            checkpoint.save(folder, state(2), keep=1)
        found = checkpoint.load_newest(folder)
        has_new_name = (folder / "step-2").exists()
        assert found.refused == () and same(found.state, state(2 if has_new_name else 1)), seen[at - 1]
        if isinstance(failure, OSError):
            assert not list(folder.glob("*.tmp"))
        with monkeypatch.context() as patch:
            Faults(patch, at=0, failure=failure)
            checkpoint.save(folder, state(3), keep=1)
        assert names(folder) == ["step-3"] and same(checkpoint.load_newest(folder).state, state(3))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="names of open files are read from Linux's /proc")
def test_everything_is_on_the_disk_before_the_next_thing_depends_on_it(tmp_path, monkeypatch):
    """Files and their folder before the rename that gives it its name; that rename before older ones go."""
    checkpoint.save(tmp_path, state(1))
    events, rename = [], os.rename

    def renamed(old, new):
        events.append(("rename", Path(old).name, Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "fsync", lambda file: events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{file}")))))
    checkpoint.save(tmp_path, state(2), keep=1)
    temporary, named = tmp_path / "step-2.tmp", events.index(("rename", "step-2.tmp", "step-2"))
    files = [("fsync", temporary / name) for name in (*checkpoint.FILES, checkpoint.MANIFEST)]
    assert sorted(events[: named - 1]) == sorted(files)
    assert events[named - 1] == ("fsync", temporary)
    assert events[named + 1 :] == [("fsync", tmp_path), ("rename", "step-1", "step-1.old")]


def test_a_file_that_the_system_cuts_short_is_an_error_and_leaves_the_older_one(tmp_path):
    checkpoint.save(tmp_path, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    new = state(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"step-2\.tmp/model\.safetensors"):
            checkpoint.save(tmp_path, new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step-1"] and same(checkpoint.load_newest(tmp_path).state, state(1))


def test_a_disk_that_gives_back_something_else_costs_no_older_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(1))
    rename = os.rename

    def renamed_and_damaged(old, new):
        rename(old, new)
        damage(Path(new) / checkpoint.MODEL)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="SHA-256"):
        patch.setattr(os, "rename", renamed_and_damaged)
        checkpoint.save(tmp_path, state(2), keep=1)
    assert same(checkpoint.load_newest(tmp_path).state, state(1))

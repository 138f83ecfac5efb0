"""Folders of samples: interrupted and gone on with, damaged and repaired, made by something else and refused."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch

from ssmvdm.digests import weights_digest
from ssmvdm.errors import InputError
from ssmvdm.sample_folder import RECORD, SampleFolder, file_name

MADE_BY = {"weights_sha256": "0" * 64, "sampler": "ddpm", "steps": None, "seed": 3}


def drawn(indices, progress=iter):
    """Videos that tell which batch they were computed in, as a network's rounding would."""
    return np.stack([np.full((3, 2, 4, 4), index + len(indices) / 64, np.float32) for index in indices])


def opened(path, **changes):
    return SampleFolder.open(path, MADE_BY | changes, "run")


def filled(folder, count, batch, sample=drawn):
    return list(folder.do(folder.work(count, batch), sample))


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_folder_holds_the_samples_and_what_made_them(tmp_path):
    folder = opened(tmp_path / "new" / "folder")
    assert filled(folder, 5, 2) == [0, 1, 2, 3, 4]
    assert folder.work(5, 2) == (set(), [])
    assert np.array_equal(folder.video(3), drawn([2, 3])[1])
    assert np.array_equal(folder.video(4), drawn([4])[0])
    record = json.loads((folder.path / RECORD).read_text())
    assert record["made_by"] == MADE_BY
    assert record["checkpoint"] == "run"
    assert list(record["samples"]) == [file_name(index) for index in range(5)]
    assert record["samples"]["sample-000004.npy"]["seed"] == [3, 4]
    assert sorted(contents(folder.path)) == [*map(file_name, range(5)), RECORD]


def test_whole_samples_are_kept_and_a_larger_count_adds(tmp_path):
    filled(opened(tmp_path), 4, 2)
    before = contents(tmp_path)
    assert filled(opened(tmp_path), 4, 2, None) == []  # nothing is computed
    assert contents(tmp_path) == before
    assert filled(opened(tmp_path), 6, 2) == [4, 5]


def test_damaged_and_missing_samples_are_made_again_bit_for_bit(tmp_path):
    filled(opened(tmp_path), 6, 3)
    before = contents(tmp_path)
    (tmp_path / file_name(1)).unlink()
    flipped = bytearray(before[file_name(3)])
    flipped[-1] ^= 1
    (tmp_path / file_name(3)).write_bytes(flipped)
    (tmp_path / file_name(5)).write_bytes(before[file_name(5)][:-1])
    assert filled(opened(tmp_path), 6, 3) == [1, 3, 5]
    assert contents(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that are forked")
def test_killed_at_any_moment_and_gone_on_with_ends_in_the_same_bytes(tmp_path):
    """SIGKILL at 30 instants spread over the time a run takes."""
    count, batch = 12, 4

    def run(path):
        filled(opened(path), count, batch)

    start = time.perf_counter()
    run(tmp_path / "whole")
    took = time.perf_counter() - start
    wanted = contents(tmp_path / "whole")
    interrupted = 0
    for attempt in range(30):
        path = tmp_path / str(attempt)
        child = os.fork()
        if child == 0:
            run(path)
            os._exit(0)
        time.sleep(took * attempt / 30)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        interrupted += os.WIFSIGNALED(status)
        finished = list(path.glob("sample-*.npy"))
        assert all(file.read_bytes() == wanted[file.name] for file in finished)
        run(path)
        assert contents(path) == wanted
    assert interrupted


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "has samples with seed 3, not 4"),
        ({"steps": 10}, "has samples with steps None, not 10"),
        ({"weights_sha256": "1" * 64}, "has samples with weights_sha256"),
        ({"level": 5}, "has samples with level None, not 5"),
    ],
)
def test_samples_of_other_settings_are_refused_and_left_alone(tmp_path, changes, said):
    filled(opened(tmp_path), 2, 2)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=said):
        opened(tmp_path, **changes)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "record",
    ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 2, "made_by": {}, "samples": {}}', "[" * 100_000,
     '{"schema": 1, "made_by": [], "samples": {}}', '{"schema": 1, "made_by": {}, "samples": {"../../x": {}}}',
     '{"schema": 1, "made_by": {}, "samples": {"sample-000000.npy": {"sha256": "no"}}}',
     '{"schema": 1, "made_by": {}, "samples": {"sample-000000.npy": {"sha256": 7}}}'],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(tmp_path, record):
    (tmp_path / RECORD).write_text(record)
    with pytest.raises(InputError, match="is not a record of samples"):
        opened(tmp_path)
    assert (tmp_path / RECORD).read_text() == record


def test_samples_without_a_record_and_a_folder_that_is_none_are_refused(tmp_path):
    (tmp_path / file_name(0)).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"has samples but no {RECORD}"):
        opened(tmp_path)
    with pytest.raises(InputError, match="cannot use folder"):
        opened(tmp_path / file_name(0))
    assert contents(tmp_path) == {file_name(0): b"mine"}


def test_the_digest_of_weights_sees_values_names_and_shapes():
    one, same, other = (torch.nn.Linear(2, 3) for _ in range(3))
    same.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)
    wide = torch.nn.Linear(3, 2)
    wide.weight.data, wide.bias = one.weight.data.view(2, 3), torch.nn.Parameter(one.bias.data)
    assert weights_digest(wide) != weights_digest(one)

"""Training on videos from disk, a broken one among them."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from ssmvdm import cli
from ssmvdm.checkpoint import load
from ssmvdm.data.source import DataConfig
from ssmvdm.run_log import read_log
from ssmvdm.training import train
from tests.data_tests import made
from tests.training.tiny import RUN, same


@pytest.fixture
def folder(tmp_path):
    """Twelve videos, of which one is broken."""
    path = tmp_path / "videos"
    path.mkdir()
    for number in range(12):
        np.save(path / f"{number}.npy", made.numbered(20 * number, 20, 16, 16))
    (path / "5.npy").write_bytes(b"broken")
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_arrives_at_the_same_bits(folder, tmp_path, workers):
    data = DataConfig("folder", RUN.data.frames, RUN.data.size, str(folder))
    config = replace(RUN, data=data, steps=6, batch=2, checkpoint_every=3, sample_every=0, workers=workers)
    whole = load(train(config, tmp_path / "whole", progress=False))
    train(replace(config, steps=3), tmp_path / "halves", progress=False)
    assert same(load(train(config, tmp_path / "halves", progress=False)), whole)
    plain = load(train(replace(config, workers=0), tmp_path / "plain", progress=False))
    assert same(plain, replace(whole, config=plain.config))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_video_that_was_left_out_is_in_the_log_once_with_its_path(folder, tmp_path, workers):
    data = DataConfig("folder", RUN.data.frames, RUN.data.size, str(folder))
    config = replace(RUN, data=data, steps=24, sample_every=0, workers=workers, log_every=100)
    train(config, tmp_path / "run", progress=False)
    records = read_log(tmp_path / "run" / "log.jsonl")
    told = [line for record in records for line in record.get("left_out", ())]
    assert len(told) == 1 and told[0].startswith(f"{folder / '5.npy'}: ")
    assert len(records) == 2 and records[-1]["step"] == 24  # the step that met it, though it was not due, and the last


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_too_many_broken_videos_end_the_command_in_one_line(folder, tmp_path, capsys, workers):
    for number in range(6):
        (folder / f"{number}.npy").write_bytes(b"broken")
    config = replace(RUN, data=DataConfig("folder", 8, 16, str(folder)), steps=20, workers=workers, sample_every=0)
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict()))
    status = cli.main(["train", str(tmp_path / "run.json"), "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err.splitlines()
    assert status == 2
    assert told[-1].startswith("ssmvdm: error: 2 of the 12 videos cannot be used, more than the allowed share of 0.1")
    assert sum(line.startswith("ssmvdm: error") for line in told) == 1


def test_videos_that_were_left_out_before_are_counted_when_a_run_goes_on(folder, tmp_path):
    for number in range(3):
        (folder / f"{number}.npy").write_bytes(b"broken")
    data = DataConfig("folder", RUN.data.frames, RUN.data.size, str(folder), max_unusable=0.2)
    config = replace(RUN, data=data, batch=1, checkpoint_every=1, sample_every=0)
    steps = 0
    with pytest.raises(ValueError, match=r"3 of the 12 videos cannot be used, more than the allowed share of 0\.2"):
        for steps in range(1, 25):  # one step at a time: no call meets more than one of them
            train(replace(config, steps=steps), tmp_path / "run", progress=False)
    told = [line for record in read_log(tmp_path / "run" / "log.jsonl") for line in record.get("left_out", ())]
    assert len(told) == len(set(told)) == 3
    generous = replace(config, steps=steps + 1, data=replace(data, max_unusable=0.5))
    train(generous, tmp_path / "run", progress=False)


def test_a_file_name_that_is_no_text_is_a_name(folder, tmp_path):
    odd = os.path.join(os.fsencode(folder), b"caf\xe9.npy")
    with open(odd, "wb") as file:
        np.save(file, made.numbered(0, 20, 16, 16))
    data = DataConfig("folder", RUN.data.frames, RUN.data.size, str(folder))
    train(replace(RUN, data=data, steps=2, sample_every=0), tmp_path / "run", progress=False)

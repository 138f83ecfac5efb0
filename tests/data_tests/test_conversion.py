"""From what is shipped to one file per video, which its reader then takes."""

import os
import struct

import numpy as np
import pytest
import torch

from ssmvdm import cli
from ssmvdm.data import conversion
from ssmvdm.data.source import DataConfig, open_source
from tests.data_tests import made
from tests.data_tests.test_videos import Planted


def convert(name, source, out):
    return list(conversion.convert_data_set(name, source, out))


def walk(video, frames=5, edge=64):
    return made.numbered(video, frames, edge, edge)


def read_back(name, out):
    """The videos of both halves, through the data set's reader."""
    source = open_source(DataConfig(name, 5, 64, str(out)))
    halves = []
    for files in (source.training, source.held_out):
        assert all(np.load(video.path).shape[0] == 5 for video in files)
        halves.append([int(np.load(video.path)[0, 0, 0, 1]) for video in files])
    source.training_clip(0, 0)
    assert not source.unusable
    return halves


def make_tfrecords(root):
    """As TensorFlow Datasets writes them: minerl_navigate/1.0.0/minerl_navigate-train.tfrecord-00000-of-00002, ..."""
    folder = root / "minerl_navigate" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    for split, shard, videos in (("train", 0, (0, 1)), ("train", 1, (2,)), ("test", 0, (3,))):
        records = [
            made.example(actions=[1, 2], video=[made.png(frame) for frame in walk(video)]) for video in videos
        ]
        name = f"minerl_navigate-{split}.tfrecord-{shard:05d}-of-0000{2 if split == 'train' else 1}"
        (folder / name).write_bytes(made.tfrecord(records))


@pytest.mark.parametrize("name", ["minerl", "gqn-mazes"])
def test_tfrecords(tmp_path, name):
    make_tfrecords(tmp_path / "in")
    converted = convert(name, tmp_path / "in", tmp_path / "out")
    assert [str(one.target.relative_to(tmp_path / "out")) for one in converted] == [
        "train/0.npy", "train/1.npy", "train/2.npy", "test/0.npy"
    ]  # fmt: skip
    assert read_back(name, tmp_path / "out") == [[0, 1, 2], [3]]
    assert np.array_equal(np.load(tmp_path / "out" / "train" / "1.npy"), walk(1))


@pytest.mark.parametrize("suffix", ["npz", "npy", "mp4"])
def test_folders_of_videos(tmp_path, suffix):
    source = tmp_path / "in"
    for split, videos in (("train", (0, 40, 80)), ("test", (120,))):
        (source / split).mkdir(parents=True)
        for number, video in enumerate(videos):
            path = source / split / f"{number}.{suffix}"
            if suffix == "mp4":
                made.write_coded(path, np.full((5, 64, 64, 3), video, np.uint8))
            elif suffix == "npz":
                np.savez_compressed(path, video=walk(video), actions=np.zeros(5))
            else:
                np.save(path, walk(video))
    assert not [one for one in convert("gqn-mazes", source, tmp_path / "out") if one.problem]
    training, held_out = read_back("gqn-mazes", tmp_path / "out")
    allowed = 2 if suffix == "mp4" else 0  # levels that conversion to YCbCr and back may cost
    assert np.abs(np.array([*training, *held_out]) - [0, 40, 80, 120]).max() <= allowed


def make_carla(folder, numbers=(0, 2, 7), lists=((0, 7), (2,))):
    folder.mkdir()
    for number in numbers:
        torch.save(torch.from_numpy(walk(number, edge=128)), folder / f"video_{number}.pt")
    for split, chosen in zip(("train", "test"), lists, strict=True):
        lines = "".join(f"{i},/scratch/no-traffic/video_{number}.pt\n" for i, number in enumerate(chosen))
        (folder / f"video_{split}.csv").write_text(",path\n" + lines)


def test_carla(tmp_path):
    make_carla(tmp_path / "in")
    assert not [one for one in convert("carla", tmp_path / "in", tmp_path / "out") if one.problem]
    assert read_back("carla", tmp_path / "out") == [[0, 7], [2]]


def test_carla_without_lists_holds_the_last_hundred_out(tmp_path):
    assert conversion.carla_split(tmp_path, list(range(408 + 100))) == {
        "train": list(range(408)), "test": list(range(408, 508))
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"needs video_train\.csv and video_test\.csv: of 100 videos"):
        conversion.carla_split(tmp_path, list(range(100)))


@pytest.mark.parametrize(
    ("lists", "reason"),
    [(((0, 7), (9,)), r"has no video_9\.pt"), (((0, 7), (2, 7)), r"both lists .* name video_7\.pt")],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, lists, reason):
    make_carla(tmp_path / "in", lists=lists)
    with pytest.raises(ValueError, match=reason):
        convert("carla", tmp_path / "in", tmp_path / "out")


def test_an_interrupted_conversion_is_taken_up(tmp_path, monkeypatch):
    make_tfrecords(tmp_path / "in")
    written = []
    write = conversion.write_npy

    def until_the_third(path, video):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, video)

    monkeypatch.setattr(conversion, "write_npy", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        convert("minerl", tmp_path / "in", tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*"))) == 1 + 1 + 2  # the record, the folder and two whole files
    monkeypatch.setattr(conversion, "write_npy", lambda path, video: (written.append(path), write(path, video)))
    convert("minerl", tmp_path / "in", tmp_path / "out")
    assert len(written) == len(set(written)) == 4
    assert read_back("minerl", tmp_path / "out") == [[0, 1, 2], [3]]


def save(path, video=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, walk(video))


def make_folders(root):
    for name in ("train/0", "train/2", "test/0"):
        save(root / f"{name}.npy")


def replace_by_one_of_the_same_size(path):
    save(path, 7)
    os.utime(path, (1, 1))


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda train: save(train / "1.npy"), r"train/1\.npy 'absent', not 'train, \d+ bytes, "),
        (lambda train: (train / "0.npy").unlink(), r"train/0\.npy 'train, .*', not 'absent'"),
        (lambda train: replace_by_one_of_the_same_size(train / "0.npy"), r"train/0\.npy .* at 1000000000 ns'"),
    ],
)
def test_only_the_same_files_are_gone_on_with(tmp_path, change, told):
    source, out = tmp_path / "in", tmp_path / "out"
    make_folders(source)
    assert len(convert("minerl", source, out)) == len(convert("minerl", source, out)) == 3
    before = content(out)
    change(source / "train")
    with pytest.raises(ValueError, match=f"out has a conversion with {told}.*; choose another folder"):
        convert("minerl", source, out)
    assert content(out) == before


def test_neither_another_source_nor_another_data_set_is_gone_on_with(tmp_path):
    for name in ("in", "other"):
        make_folders(tmp_path / name)
    convert("minerl", tmp_path / "in", tmp_path / "out")
    with pytest.raises(ValueError, match=r"out has a conversion with source '.*/in', not '.*/other'; choose"):
        convert("minerl", tmp_path / "other", tmp_path / "out")
    with pytest.raises(ValueError, match="out has a conversion with data set 'minerl', not 'gqn-mazes'; choose"):
        convert("gqn-mazes", tmp_path / "in", tmp_path / "out")


def test_no_video_of_carla_comes_into_both_halves(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "CARLA_HELD_OUT", 1)
    source, out = tmp_path / "in", tmp_path / "out"
    make_carla(source)
    convert("carla", source, tmp_path / "of-lists")
    for split, number in (("train", 2), ("test", 7)):
        (source / f"video_{split}.csv").write_text(f"0,video_{number}.pt\n")
    with pytest.raises(ValueError, match=r"of-lists has a conversion with video_0\.pt 'train, .*', not 'absent'"):
        convert("carla", source, tmp_path / "of-lists")
    for path in source.glob("*.csv"):
        path.unlink()
    convert("carla", source, out)
    before = content(out)
    torch.save(torch.from_numpy(walk(9, edge=128)), source / "video_9.pt")
    with pytest.raises(ValueError, match=r"out has a conversion with video_7\.pt 'test, .*', not 'train, .*'; choose"):
        convert("carla", source, out)
    assert content(out) == before


def test_videos_that_the_record_does_not_explain_are_refused(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    make_folders(source)
    save(out / "train" / "0.npy", 9)
    with pytest.raises(ValueError, match=r"out has .*/train/0\.npy and no conversion\.json .*; choose another folder"):
        convert("minerl", source, out)
    assert [path.name for path in out.iterdir()] == ["train"]
    (out / "train" / "0.npy").unlink()
    convert("minerl", source, out)
    save(out / "test" / "more" / "5.npy")
    with pytest.raises(ValueError, match=r"out has .*/test/more/5\.npy, which is no video of .*/in; choose"):
        convert("minerl", source, out)
    (out / "conversion.json").write_text("[]")
    with pytest.raises(ValueError, match=r"conversion\.json: expected a JSON object, got list"):
        convert("minerl", source, out)


def test_videos_that_cannot_be_read_are_told_and_keep_no_file(tmp_path):
    make_carla(tmp_path / "in", numbers=(0, 1, 2, 3, 4), lists=((0, 1, 2, 3), (4,)))
    trace = tmp_path / "trace"
    torch.save({"video": Planted(str(trace))}, tmp_path / "in" / "video_0.pt")
    (tmp_path / "in" / "video_1.pt").write_bytes(b"PK\x03\x04 and nothing")
    torch.save(torch.from_numpy(walk(2, edge=32)), tmp_path / "in" / "video_2.pt")
    torch.save([1, 2], tmp_path / "in" / "video_3.pt")
    problems = {one.target.stem: one.problem for one in convert("carla", tmp_path / "in", tmp_path / "out")}
    assert not trace.exists()
    assert "is not a file of tensors" in problems["0"]
    assert "is not a file of tensors" in problems["1"]
    assert problems["2"] == "its frames are 32 x 32, expected 128 x 128"
    assert problems["3"] == "expected a tensor, got list"
    assert problems["4"] is None
    assert [path.name for path in (tmp_path / "out").rglob("*.npy")] == ["4.npy"]


def test_a_damaged_tfrecord_stops_the_conversion(tmp_path):
    make_tfrecords(tmp_path / "in")
    path = next((tmp_path / "in").rglob("*train.tfrecord-00001*"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match=r"train\.tfrecord-00001.*byte 0 is damaged"):
        convert("minerl", tmp_path / "in", tmp_path / "out")


def test_a_record_that_holds_no_images_is_told(tmp_path):
    for split, record in (("train", made.example(depth=[b"x"])), ("test", made.example(video=[b"not an image"]))):
        (tmp_path / f"a-{split}.tfrecord").write_bytes(made.tfrecord([record]))
    first, second = convert("minerl", tmp_path, tmp_path / "out")
    assert first.problem == "the record has no images called 'video', only depth"
    assert "cannot identify image file" in second.problem


# -- the command -------------------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_converts_and_shows(tmp_path, capsys):
    make_tfrecords(tmp_path / "in")
    status, out, _ = command(capsys, "convert", "data", "minerl", tmp_path / "in", tmp_path / "out")
    assert status == 0
    assert out.strip() == f"4 videos in {tmp_path / 'out'}"
    shown = tmp_path / "clips.npy"
    sizes = ("--frames", 5, "--size", 32, "--batch", 2)
    status, out, _ = command(capsys, "data", "minerl", "--path", tmp_path / "out", "--out", shown, *sizes)
    assert status == 0
    source = open_source(DataConfig("minerl", 5, 32, str(tmp_path / "out")))
    assert np.array_equal(np.load(shown), np.stack([source.training_clip(0, example).video for example in (0, 1)]))
    status, out, _ = command(capsys, "data", "minerl", "--path", tmp_path / "out", "--out", shown, *sizes, "--held-out")
    assert status == 0
    assert np.array_equal(np.load(shown), np.stack([clip.video for clip in source.held_out_clips()]))


def test_the_command_prints_captions(tmp_path, capsys):
    from tests.data_tests.test_datasets import make_msrvtt

    make_msrvtt(tmp_path / "in")
    arguments = ("--path", tmp_path / "in", "--frames", 4, "--size", 16, "--out", tmp_path / "clips.gif")
    status, out, _ = command(capsys, "data", "msrvtt", *arguments)
    assert status == 0
    assert out.startswith("clip 0: ")
    assert out.endswith(f"{tmp_path / 'clips.gif'}\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("convert", "data", "minerl", "{}/none", "{}/out"), "expected a folder, {}/none is none"),
        (("convert", "data", "minerl", "{}/in", "{}/out"), "has neither train and test .tfrecord files nor folders"),
        (("convert", "data", "carla", "{}/in", "{}/out"), "has no files video_N.pt"),
        (("convert", "data", "carla", "{}/bad", "{}/out"), "1 of 3 videos could not be converted; the first is {}/bad"),
        (("convert", "data", "ucf101", "{}/in", "{}/out"), "ucf101"),
        (("data", "folder"), "--path: 'folder' needs the place of its files"),
        (("data", "maze", "--path", "{}"), "--path is for data sets on disk"),
        (("data", "folder", "--path", "{}/in"), "there are no training videos below {}/in"),
        (("data", "folder", "--path", "{}/bad_arrays", "--frames", "4"), "1 of the 4 videos cannot be used"),
        (("data", "folder", "--path", "{}/one", "--frames", "4", "--held-out"), "no video of {}/one is held out"),
        (("data", "moving-mnist", "--path", "{}/in"), "--frames: a video of moving-mnist has 20, got 64"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_status_two(tmp_path, capsys, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    make_carla(tmp_path / "bad")
    (tmp_path / "bad" / "video_2.pt").write_bytes(struct.pack("<Q", 3))
    for folder in ("bad_arrays", "one"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "one" / "a.npy", made.numbered(0, 5))
    for number in range(4):
        np.save(tmp_path / "bad_arrays" / f"{number}.npy", np.zeros(number))
    status, _, err = command(capsys, *(argument.format(tmp_path) for argument in arguments))
    told = [line for line in err.splitlines() if line.startswith("ssmvdm: error: ")]
    assert status == 2
    assert len(told) == 1
    assert reason.format(tmp_path) in told[0]
    assert not (tmp_path / "clips.gif").exists()

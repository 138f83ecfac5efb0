"""Every data set in the form it is known in: what is for training, what is held out, and that no video is in both."""

import json

import numpy as np
import pytest

from ssmvdm.data.datasets import video_names
from ssmvdm.data.source import DATA_SETS, DataConfig, open_source
from tests.data_tests import made


def fill(folder, count, frames=6, edge=64, first=0):
    folder.mkdir(parents=True)
    for number in range(count):
        np.save(folder / f"{number}.npy", made.numbered(first + number, frames, edge, edge))


def make_train_and_test(root, edge):
    fill(root / "train", 11, edge=edge)
    fill(root / "test", 3, edge=edge, first=100)
    return [*range(11)], [100, 101, 102]


def make_folder(root):
    for number in range(40):
        path = root / f"kind{number % 3}" / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, made.numbered(number, 6))
    (root / "notes.txt").write_text("no video")
    (root / ".trash").mkdir()
    (root / ".trash" / "0.npy").write_bytes(b"no video either")
    return None  # by hash


def make_ucf101(root):
    """As the archives unpack: UCF-101/Class/v_Class_g01_c01.avi, ucfTrainTestlist/. One video is in no list."""
    names = [f"{kind}/v_{kind}_g0{group}_c01.avi" for kind in ("Archery", "Biking") for group in range(1, 6)]
    for number, name in enumerate(names):
        path = root / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made.write_coded(path, np.full((6, 64, 64, 3), 20 * number, np.uint8))
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    training, held_out = [0, 1, 2, 5, 6, 7], [3, 8]
    (lists / "trainlist01.txt").write_text("".join(f"{names[i]} {1 + i // 5}\r\n" for i in training))
    (lists / "testlist01.txt").write_text("".join(f"{names[i]}\n" for i in held_out))
    return training, held_out


def make_msrvtt(root, splits=("train",) * 7 + ("validate", "test", "test")):
    for number in range(len(splits)):
        path = root / ("TestVideo" if splits[number] == "test" else "TrainValVideo") / f"video{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        made.write_coded(path, np.full((6, 64, 64, 3), 20 * number, np.uint8))
    files = {"train_val_videodatainfo.json": ("train", "validate"), "test_videodatainfo.json": ("test",)}
    for name, wanted in files.items():
        numbers = [number for number, split in enumerate(splits) if split in wanted]
        content = {
            "info": {},
            "videos": [{"video_id": f"video{i}", "split": splits[i], "id": i} for i in numbers],
            "sentences": [
                {"video_id": f"video{i}", "caption": f"{word} {i}", "sen_id": 0} for i in numbers for word in ("a", "b")
            ],
        }
        (root / name).write_text(json.dumps(content))
    return list(range(7)), [8, 9]


def make_moving_mnist(root):
    pixels = np.zeros((20, 25, 64, 64), np.uint8)
    pixels[:] = np.arange(25)[None, :, None, None]
    np.save(root / "mnist_test_seq.npy", pixels)
    return list(range(22)), [22, 23, 24]


MADE = {
    "folder": make_folder,
    "minerl": lambda root: make_train_and_test(root, 64),
    "gqn-mazes": lambda root: make_train_and_test(root, 64),
    "carla": lambda root: make_train_and_test(root, 128),
    "ucf101": make_ucf101,
    "msrvtt": make_msrvtt,
    "moving-mnist": make_moving_mnist,
}


def video_number(name, clip):
    """Which video it is, by its pixels."""
    brightness = 255 * clip.video.mean(axis=(1, 2, 3))
    return round(float(brightness[1]) / (20 if name in ("ucf101", "msrvtt") else 1))


def numbers(name, path, **options):
    """The videos of training, in the first rounds of a run, and those held out."""
    source = open_source(DataConfig(name, frames=4, size=16, path=str(path), **options))
    training = [video_number(name, source.training_clip(0, i)) for i in range(2 * len(source.training))]
    assert sorted(training) == sorted(2 * [*set(training)])
    assert not source.unusable
    return sorted(set(training)), [video_number(name, clip) for clip in source.held_out_clips()]


def test_every_data_set_is_tried():
    assert MADE.keys() == DATA_SETS.keys()


@pytest.mark.parametrize("name", MADE)
def test_the_split_is_honest_unless_it_is_merged(tmp_path, name):
    expected = MADE[name](tmp_path)
    training, held_out = numbers(name, tmp_path)
    assert training
    assert held_out
    assert not set(training) & set(held_out)
    if expected is not None:
        assert (training, held_out) == expected
    merged_training, merged_held_out = numbers(name, tmp_path, merge_splits=True)
    assert merged_training == sorted(merged_held_out) == sorted(training + held_out)


def test_a_folder_keeps_its_split_when_files_are_added(tmp_path):
    make_folder(tmp_path)
    training, held_out = numbers("folder", tmp_path)
    for number in range(40, 80):
        np.save(tmp_path / f"{number}.npy", made.numbered(number, 6))
    more_training, more_held_out = numbers("folder", tmp_path)
    assert set(training) < set(more_training)
    assert set(held_out) < set(more_held_out)


def test_links_to_folders_are_followed_once(tmp_path):
    """A data set is often a folder of links to where there was room; one may lead back to where it stands."""
    fill(tmp_path / "elsewhere", 3)
    (tmp_path / "data" / "own").mkdir(parents=True)
    np.save(tmp_path / "data" / "own" / "3.npy", made.numbered(3, 6))
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.npy").symlink_to(tmp_path / "nowhere.npy")
    names = video_names(tmp_path / "data")
    assert names == ["linked/0.npy", "linked/1.npy", "linked/2.npy", "own/3.npy"]


def test_a_folder_of_two_holds_one_out(tmp_path):
    fill(tmp_path / "videos", 2)
    training, held_out = numbers("folder", tmp_path / "videos")
    assert sorted(training + held_out) == [0, 1]
    assert len(held_out) == 1


@pytest.mark.parametrize("second", ["test", "val"])
def test_a_folder_may_say_its_split(tmp_path, second):
    fill(tmp_path / "train", 2)
    fill(tmp_path / second, 2, first=100)
    assert numbers("folder", tmp_path) == ([0, 1], [100, 101])


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    expected = make_train_and_test(tmp_path, 64)[0]
    source = open_source(DataConfig("minerl", 4, 16, str(tmp_path)))
    assert [int(video.path.stem) for video in source.training] == expected


def test_captions_go_along(tmp_path):
    make_msrvtt(tmp_path)
    source = open_source(DataConfig("msrvtt", 4, 16, str(tmp_path)))
    seen = set()
    for example in range(60):
        clip = source.training_clip(0, example)
        word, number = clip.caption.split()
        assert int(number) == video_number("msrvtt", clip)
        seen.add(word)
    assert seen == {"a", "b"}
    assert all(clip.caption for clip in source.held_out_clips())


def test_msrvtt_without_test_videos_holds_the_validation_split_out(tmp_path):
    make_msrvtt(tmp_path, splits=("train",) * 3 + ("validate",) * 2)
    assert numbers("msrvtt", tmp_path) == ([0, 1, 2], [3, 4])


def test_annotations_cannot_reach_files_elsewhere(tmp_path):
    """A name is looked up among the files below the path, never joined to it."""
    inside, outside = tmp_path / "inside", tmp_path / "outside.mp4"
    inside.mkdir()
    make_msrvtt(inside)
    made.write_coded(outside, np.zeros((6, 64, 64, 3), np.uint8))
    entries = {"videos": [{"video_id": name, "split": "train"} for name in ("../outside", str(outside)[:-4])]}
    (inside / "more.json").write_text(json.dumps(entries))
    source = open_source(DataConfig("msrvtt", 4, 16, str(inside)))
    assert all(video.path.is_relative_to(inside) for video in source.training)
    assert len(source.training) == 7


def test_a_file_of_the_wrong_shape_is_left_out(tmp_path):
    make_train_and_test(tmp_path, 64)
    np.save(tmp_path / "train" / "3.npy", made.numbered(3, 6, 32, 32))
    source = open_source(DataConfig("minerl", 4, 16, str(tmp_path)))
    for example in range(len(source.training)):
        source.training_clip(0, example)
    assert list(source.unusable.values()) == ["its frames are 32 x 32, expected 64 x 64"]


def test_gqn_mazes_are_read_as_they_ship(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        (tmp_path / split).mkdir()
        for number in range(count):
            made.write_coded(tmp_path / split / f"{number}.mp4", made.moving(300))
    source = open_source(DataConfig("gqn-mazes", 300, 32, str(tmp_path)))
    assert source.training_clip(0, 0).video.shape == (3, 300, 32, 32)
    assert len(list(source.held_out_clips())) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "films"}, "name must be one of maze, shapes, folder"),
        ({"name": "minerl", "frames": 501}, "frames: a video of minerl has 500, got 501"),
        ({"name": "moving-mnist", "frames": 21}, "frames: a video of moving-mnist has 20, got 21"),
        ({"name": "maze", "path": "here"}, "path is for data sets on disk"),
        ({"name": "maze", "merge_splits": True}, "merge_splits is for data sets on disk"),
        ({"name": "folder", "path": 3}, "path must be text or None, got 3"),
        ({"name": "folder", "merge_splits": 1}, "merge_splits must be True or False, got 1"),
        ({"name": "folder", "max_unusable": 2}, "max_unusable must be a number from 0 to 1, got 2"),
        ({"name": "folder", "max_unusable": float("nan")}, "max_unusable must be"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        DataConfig(**options)


def test_a_path_that_holds_nothing_is_refused(tmp_path, monkeypatch):
    def reason(name, path):
        with pytest.raises(ValueError, match=r"^path: ") as caught:
            open_source(DataConfig(name, 4, 16, path))
        return str(caught.value)

    assert "got None" in reason("folder", None)
    for name in DATA_SETS:
        assert str(tmp_path / "none") in reason(name, str(tmp_path / "none"))
        (tmp_path / name).mkdir()
        assert str(tmp_path / name) in reason(name, str(tmp_path / name))
    fill(tmp_path / "half" / "train", 2)
    assert "test is missing" in reason("minerl", str(tmp_path / "half"))
    (tmp_path / "gif").mkdir()
    made.write_gif(tmp_path / "gif" / "a.gif", made.numbered(0, 6))
    monkeypatch.setattr("ssmvdm.data.source.importlib.util.find_spec", lambda name: None)
    assert ".gif files need PIL: pip install 'ssmvdm-kernels[video]'" in reason("folder", str(tmp_path / "gif"))


def test_lists_that_do_not_fit_are_refused(tmp_path):
    make_ucf101(tmp_path)
    lists = tmp_path / "ucfTrainTestlist"
    held_out = (lists / "testlist01.txt").read_text()
    (lists / "testlist01.txt").write_text("Diving/v_Diving_g01_c01.avi\n")
    with pytest.raises(ValueError, match=r"1 videos of testlist01\.txt are not below .*Diving/v_Diving_g01_c01"):
        open_source(DataConfig("ucf101", 4, 16, str(tmp_path)))
    (lists / "testlist01.txt").write_text(held_out + (lists / "trainlist01.txt").read_text())
    with pytest.raises(ValueError, match="is listed for training and as held out"):
        open_source(DataConfig("ucf101", 4, 16, str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"videos": [3]}', "each of 'videos'"),
        ('{"sentences": [{"video_id": "video0", "caption": 3}]}', "each of 'sentences'"),
        ("[]", None),
        ('{"info": 1}', None),
    ],
)
def test_broken_annotations_are_refused_and_other_json_is_passed_over(tmp_path, content, reason):
    make_msrvtt(tmp_path)
    (tmp_path / "more.json").write_text(content)
    config = DataConfig("msrvtt", 4, 16, str(tmp_path))
    if reason is None:
        assert len(open_source(config).training) == 7
        return
    with pytest.raises(ValueError, match=f"path: .*more.json.*{reason}|path: {reason}.*more.json"):
        open_source(config)

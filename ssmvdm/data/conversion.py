"""Data sets as they are shipped -> one .npy per video, (frames, height, width, 3) uint8, in train/ and test/.

    minerl      TensorFlow Datasets' minerl_navigate: *-train.tfrecord-*, *-test.tfrecord-*; or train/ and test/ with
                .npz, .mp4 or .npy
    gqn-mazes   train/ and test/ with .mp4, as its archive has them; or tfrecords as above
    carla       video_N.pt, tensors (frames, height, width, 3) uint8, with video_train.csv and video_test.csv or, as the
                program that writes these lists does, the last hundred held out

UCF101, MSR-VTT and moving MNIST are read as they are shipped.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from ssmvdm.data.datasets import DATA_SETS, files_below, numbered_first, video_names
from ssmvdm.data.export import replacing, write_npy
from ssmvdm.data.files import UnusableVideo, foreign_bytes
from ssmvdm.data.tfrecord import byte_features, read_records
from ssmvdm.data.torch_files import load_tensors
from ssmvdm.data.videos import SUFFIXES, ArrayVideo, Video, open_video
from ssmvdm.json_file import read_object

SPLITS = ("train", "test")
RECORD = "conversion.json"
CARLA_HELD_OUT = 100
CONVERTED = ("minerl", "gqn-mazes", "carla")
Files = dict[str, list[Path]]  # of the source, by split


@dataclass(frozen=True)
class Converted:
    """One video: the file it went to, where it came from, and the reason if it could not be converted."""

    target: Path
    origin: str
    problem: str | None = None


@dataclass(frozen=True)
class _Item:
    name: str  # of the target, below the output folder
    origin: str
    load: Callable[[], np.ndarray]


def convert_data_set(name: str, source: Path, out: Path) -> Iterator[Converted]:
    """Convert video by video; one that cannot be read is told and left out. An interrupted conversion is taken up: a
    video whose file is there already is passed over. That is right for the very same files of the source alone, which
    out/conversion.json lists.

    Raises ValueError if the source is not in one of the forms of this data set, if `out` has videos of anything else,
    or if a tfrecord is damaged: what follows in it cannot be found.
    """
    if name not in CONVERTED:
        raise ValueError(f"name must be one of {', '.join(CONVERTED)}, got {name!r}")
    files = _carla(source) if name == "carla" else _train_and_test(source)
    _begin(out, {"data set": name, "source": str(source.resolve()), **_facts(source, files)})
    edge, unexplained = DATA_SETS[name].edge, _standing(out)
    for item in _carla_items(files) if name == "carla" else _numbered_items(files):
        target = out / item.name
        unexplained.discard(target)
        problem = None
        if not target.exists():
            try:
                with foreign_bytes():
                    video = item.load()
                    if video.shape[1:3] != (edge, edge):
                        came = f"{video.shape[1]} x {video.shape[2]}"
                        raise ValueError(f"its frames are {came}, expected {edge} x {edge}")
            except UnusableVideo as error:
                problem = str(error)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_npy(target, video)
        yield Converted(target, item.origin, problem)
    if unexplained:
        raise ValueError(f"{out} has {min(unexplained)}, which is no video of {source}; choose another folder")


def _facts(source: Path, files: Files) -> dict[str, str]:
    """What a conversion depends on: of each file the split, the size and the time of its last change."""
    facts = {}
    for split, paths in files.items():
        for path in paths:
            status = path.stat()
            told = f"{split}, {status.st_size} bytes, modified at {status.st_mtime_ns} ns"
            facts[path.relative_to(source).as_posix()] = told
    return facts


def _begin(out: Path, record: dict[str, str]) -> None:
    """Leave the record in a folder without videos, or make sure that it is that of the videos which are there."""
    if (out / RECORD).exists():
        begun = read_object(out / RECORD)
        for name in {**begun, **record}:
            theirs, ours = (facts.get(name, "absent") for facts in (begun, record))
            if theirs != ours:
                told = f"with {name} {theirs!r}, not {ours!r}"
                raise ValueError(f"{out} has a conversion {told}; choose another folder")
    elif videos := _standing(out):
        raise ValueError(f"{out} has {min(videos)} and no {RECORD} that says what it is of; choose another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")


def _standing(out: Path) -> set[Path]:
    """The videos that the data set's reader would find."""
    folders = (out / split for split in SPLITS)
    return {folder / name for folder in folders if folder.is_dir() for name in video_names(folder)}


def _train_and_test(source: Path) -> Files:
    """Tfrecords of both splits anywhere below the source, or the videos in its folders train and test."""
    names = {split: f"{split}.tfrecord" for split in SPLITS}
    records = {split: [path for path in files_below(source) if name in path.name] for split, name in names.items()}
    folders = {split: _videos(source / split) for split in SPLITS}
    for found in (records, folders):
        if all(found.values()):
            return found
    raise ValueError(f"{source} has neither train and test .tfrecord files nor folders train and test with videos")


def _numbered_items(files: Files) -> Iterator[_Item]:
    for split, paths in files.items():
        for number, (origin, load) in enumerate(_loaders(paths)):
            yield _Item(f"{split}/{number}.npy", origin, load)


def _videos(folder: Path) -> list[Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (path for path in paths if path.suffix.lower() in SUFFIXES), key=lambda path: numbered_first(path.name)
    )


def _loaders(paths: list[Path]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    for path in paths:
        if ".tfrecord" not in path.name:
            yield str(path), lambda path=path: _read_whole(path)
            continue
        for index, record in enumerate(read_records(path)):
            yield f"{path}, record {index}", lambda record=record: decode_example(record)


def _read_whole(path: Path) -> np.ndarray:
    with open_video(path) as video:
        return _all_frames(video)


def _all_frames(video: Video) -> np.ndarray:
    return np.stack(list(video.read(0, video.frames)))


def decode_example(record: bytes) -> np.ndarray:
    """The frames of a tf.train.Example whose feature "video" is a list of PNG or JPEG images."""
    from PIL import Image

    features = byte_features(record)
    if not features.get("video"):
        raise ValueError(f"the record has no images called 'video', only {', '.join(features) or 'nothing'}")
    images = [Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) for data in features["video"]]
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def _carla(source: Path) -> Files:
    matches = ((re.fullmatch(r"video_(\d+)", path.stem), path) for path in source.glob("video_*.pt"))
    by_number = {int(match[1]): path for match, path in matches if match}
    if not by_number:
        raise ValueError(f"{source} has no files video_N.pt")
    splits = carla_split(source, sorted(by_number))
    return {split: [by_number[number] for number in numbers] for split, numbers in splits.items()}


def _carla_items(files: Files) -> Iterator[_Item]:
    for split, paths in files.items():
        for path in paths:
            name = f"{split}/{int(path.stem.removeprefix('video_'))}.npy"
            yield _Item(name, str(path), lambda path=path: _all_frames(_tensor_video(path)))


def carla_split(source: Path, numbers: list[int]) -> dict[str, list[int]]:
    """By the two lists, whose lines are `index,path`; without them the last hundred are held out."""
    lists = {split: source / f"video_{split}.csv" for split in ("train", "test")}
    if not any(path.exists() for path in lists.values()):
        if len(numbers) <= CARLA_HELD_OUT:
            raise ValueError(
                f"{source} needs video_train.csv and video_test.csv: of {len(numbers)} videos the last "
                f"{CARLA_HELD_OUT} cannot be held out"
            )
        return {"train": numbers[:-CARLA_HELD_OUT], "test": numbers[-CARLA_HELD_OUT:]}
    split_of = {}
    for split, path in lists.items():
        names = [PureWindowsPath(line.strip()).name for line in path.read_text(encoding="utf-8").splitlines()]
        split_of[split] = [int(match[1]) for name in names if (match := re.search(r"video_(\d+)\.pt$", name))]
    training, held_out = set(split_of["train"]), set(split_of["test"])
    if unknown := sorted((training | held_out) - set(numbers)):
        raise ValueError(f"{source} has no video_{unknown[0]}.pt, which the lists name")
    if both := sorted(training & held_out):
        raise ValueError(f"both lists of {source} name video_{both[0]}.pt")
    return split_of


def _tensor_video(path: Path) -> ArrayVideo:
    tensor = load_tensors(path)
    if not hasattr(tensor, "numpy"):
        raise ValueError(f"expected a tensor, got {type(tensor).__name__}")
    return ArrayVideo(tensor.numpy())

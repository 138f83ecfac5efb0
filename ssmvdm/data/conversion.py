"""Data sets as they are shipped -> one .npy per video, (frames, height, width, 3) uint8, in train/ and test/.

    minerl      TensorFlow Datasets' minerl_navigate: *-train.tfrecord-*, *-test.tfrecord-*; or train/ and test/ with
                .npz, .mp4 or .npy
    gqn-mazes   train/ and test/ with .mp4, as its archive has them; or tfrecords as above
    carla       video_N.pt, tensors (frames, height, width, 3) uint8, with video_train.csv and video_test.csv or, as the
                program that writes these lists does, the last hundred held out

UCF101, MSR-VTT and moving MNIST are read as they are shipped.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from ssmvdm.data.datasets import DATA_SETS, numbered_first
from ssmvdm.data.export import write_npy
from ssmvdm.data.files import UnusableVideo, foreign_bytes
from ssmvdm.data.tfrecord import byte_features, read_records
from ssmvdm.data.torch_files import load_tensors
from ssmvdm.data.videos import SUFFIXES, ArrayVideo, Video, open_video

CARLA_HELD_OUT = 100
CONVERTED = ("minerl", "gqn-mazes", "carla")


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
    """Convert video by video. A video whose file is there already is passed over, so that an interrupted conversion
    can be taken up; one that cannot be read is told and left out.

    Raises ValueError if the source is not in one of the forms of this data set, or if a tfrecord is damaged: what
    follows in it cannot be found.
    """
    if name not in CONVERTED:
        raise ValueError(f"name must be one of {', '.join(CONVERTED)}, got {name!r}")
    items = _carla(source) if name == "carla" else _train_and_test(source)
    edge = DATA_SETS[name].edge
    for item in items:
        target = out / item.name
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


def _train_and_test(source: Path) -> Iterator[_Item]:
    """Tfrecords of both splits anywhere below the source, or the videos in its folders train and test."""
    splits = ("train", "test")
    records = {split: sorted(source.rglob(f"*{split}.tfrecord*")) for split in splits}
    folders = {split: _videos(source / split) for split in splits}
    for found in (records, folders):
        if all(found.values()):
            break
    else:
        raise ValueError(f"{source} has neither train and test .tfrecord files nor folders train and test with videos")
    for split, paths in found.items():
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


def _carla(source: Path) -> Iterator[_Item]:
    matches = ((re.fullmatch(r"video_(\d+)", path.stem), path) for path in source.glob("video_*.pt"))
    by_number = {int(match[1]): path for match, path in matches if match}
    if not by_number:
        raise ValueError(f"{source} has no files video_N.pt")
    for split, numbers in carla_split(source, sorted(by_number)).items():
        for number in numbers:
            path = by_number[number]
            yield _Item(f"{split}/{number}.npy", str(path), lambda path=path: _all_frames(_tensor_video(path)))


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

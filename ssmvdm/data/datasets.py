"""How each data set lies on disk, and which of its videos are for training.

    folder        any files, also in subfolders. Folders called train and test (or val) split it, else every tenth file
                  by the hash of its name is held out, so that files added later move none of the others.
    minerl        MineRL Navigate: train/N.npy and test/N.npy, 500 frames of 64 x 64
    gqn-mazes     the same with 300 frames of 64 x 64; the .mp4 files it ships as are fine too
    carla         CARLA Town01 without traffic: the same with 1000 frames of 128 x 128
    ucf101        a folder per class with .avi files, trainlist01.txt and testlist01.txt, anywhere below the path; the
                  class is the video's caption
    msrvtt        videoN.mp4 and the JSON files with "videos" and "sentences", anywhere below the path; held out is the
                  split "test", or "validate" where there is none
    moving-mnist  mnist_test_seq.npy (20, videos, 64, 64), or a folder with it; the last tenth is held out
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ssmvdm.data.files import VideoFile
from ssmvdm.data.videos import SUFFIXES

HELD_OUT_FOLDERS = ("test", "val")
HELD_OUT_SHARE = 10  # one in so many, where the data set does not say

Files = tuple[VideoFile, ...]
Split = tuple[Files, Files]  # training, held out


@dataclass(frozen=True)
class DataSet:
    """split: the files below a path. frames: the longest clip there is, and edge: of every frame; None for any."""

    split: Callable[[Path], Split]
    frames: int | None = None
    edge: int | None = None


def split_folder(root: Path) -> Split:
    """By folders called train and test, or by the hash of the name."""
    names = video_names(root)
    if (root / "train").is_dir() and any((root / name).is_dir() for name in HELD_OUT_FOLDERS):
        return split_train_test(root)
    held_out = [name for name in names if _hash(name) < 2**64 // HELD_OUT_SHARE]
    if not held_out and len(names) > 1:
        held_out = [min(names, key=_hash)]
    chosen = set(held_out)
    return _files(root, (name for name in names if name not in chosen)), _files(root, held_out)


def split_train_test(root: Path) -> Split:
    """train/ and test/ (or val/)."""
    held_out = next((root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()), root / "test")
    for folder in (root / "train", held_out):
        if not folder.is_dir():
            raise ValueError(f"path: expected the folders train and test in {root}, {folder.name} is missing")
    return _files(root / "train", video_names(root / "train")), _files(held_out, video_names(held_out))


def split_ucf101(root: Path) -> Split:
    """The official lists name Class/video.avi, the training list also the number of the class."""
    by_name = {PurePosixPath(name).parts[-2:]: name for name in video_names(root)}
    halves = []
    for list_name in ("trainlist01.txt", "testlist01.txt"):
        path = _only(root, list_name)
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"path: {path} is not text in UTF-8: {error}") from error
        listed = [PurePosixPath(words[0]).parts[-2:] for words in lines if words]
        missing = [name for name in listed if name not in by_name]
        if missing:
            example = "/".join(missing[0])
            raise ValueError(f"path: {len(missing)} videos of {list_name} are not below {root}, for example {example}")
        halves.append(tuple(VideoFile(root / by_name[name], captions=name[:1]) for name in listed))
    return halves[0], halves[1]


def split_msrvtt(root: Path) -> Split:
    by_name = {PurePosixPath(name).stem: name for name in video_names(root)}
    split_of, captions = _read_captions(root)
    parts: dict[str, list[VideoFile]] = {"train": [], "validate": [], "test": []}
    for name in sorted(split_of.keys() & by_name.keys(), key=lambda name: (len(name), name)):  # video2 before video10
        if split_of[name] in parts:
            parts[split_of[name]].append(VideoFile(root / by_name[name], captions=tuple(captions.get(name, ()))))
    return tuple(parts["train"]), tuple(parts["test"] or parts["validate"])


def split_moving_mnist(root: Path) -> Split:
    path = root if root.is_file() else _only(root, "mnist_test_seq.npy")
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (ValueError, EOFError, AttributeError) as error:  # an archive of arrays has no shape
        raise ValueError(f"path: {path} is not a NumPy array of numbers: {error}") from error
    if len(shape) != 4 or shape[1] < 2:
        raise ValueError(f"path: expected an array (frames, 2 or more videos, height, width) in {path}, got {shape}")
    files = tuple(VideoFile(path, lane) for lane in range(shape[1]))
    held_out = -(-shape[1] // HELD_OUT_SHARE)
    return files[:-held_out], files[-held_out:]


DATA_SETS = {
    "folder": DataSet(split_folder),
    "minerl": DataSet(split_train_test, frames=500, edge=64),
    "gqn-mazes": DataSet(split_train_test, frames=300, edge=64),
    "carla": DataSet(split_train_test, frames=1000, edge=128),
    "ucf101": DataSet(split_ucf101),
    "msrvtt": DataSet(split_msrvtt),
    "moving-mnist": DataSet(split_moving_mnist, frames=20, edge=64),
}


def numbered_first(name: str) -> tuple:
    """Sorts 2.npy before 10.npy, and numbers before words."""
    stem = PurePosixPath(name).stem
    return (not stem.isdecimal(), int(stem) if stem.isdecimal() else 0, name)


def files_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Every file in a folder and its subfolders, by name; none where there is no folder. Links are followed, but for
    those to a folder that one is in already, whose device and inode are in `above`."""
    if not folder.is_dir():
        return
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir():
            yield from files_below(Path(entry), (*above, here))
        elif entry.is_file():
            yield Path(entry)


def video_names(root: Path) -> list[str]:
    """Names, relative to root, of what may be a video, hidden files left out."""
    if not root.is_dir():
        raise ValueError(f"path: expected a folder of videos, {root} is none")
    paths = (path.relative_to(root) for path in files_below(root) if path.suffix.lower() in SUFFIXES)
    shown = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(shown, key=numbered_first)


def _files(root: Path, names: Iterable[str]) -> Files:
    return tuple(VideoFile(root / name) for name in names)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


def _only(root: Path, name: str) -> Path:
    found = next((path for path in files_below(root) if path.name == name), None)
    if found is None:
        raise ValueError(f"path: there is no {name} below {root}")
    return found


def _read_captions(root: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """video name -> its split; video name -> its captions."""
    split_of: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for path in (path for path in files_below(root) if path.suffix == ".json"):
        for kind, video, text in _annotations(path):
            if kind == "split":
                split_of[video] = text
            else:
                captions.setdefault(video, []).append(text)
    if not split_of:
        raise ValueError(f"path: no JSON file below {root} has the list 'videos' with their 'video_id' and 'split'")
    return split_of, captions


def _annotations(path: Path) -> Iterator[tuple[str, str, str]]:
    """("split" or "caption", video, text) of a file; nothing of a JSON file of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path: {path} is not valid JSON: {error}") from error
    for key, text_key in (("videos", "split"), ("sentences", "caption")):
        entries = content.get(key) if isinstance(content, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            words = (entry.get("video_id"), entry.get(text_key)) if isinstance(entry, dict) else (None, None)
            if not all(isinstance(word, str) for word in words):
                raise ValueError(f"path: each of {key!r} in {path} needs a 'video_id' and a {text_key!r}")
            yield text_key, *words

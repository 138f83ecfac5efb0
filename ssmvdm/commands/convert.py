"""`ssmvdm convert data | checkpoint`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError
from ssmvdm.json_file import read_object


@dataclass(frozen=True)
class ConvertDataOptions:
    """Turn a data set as it is shipped into one .npy per video, in the folders train and test.

    UCF101, MSR-VTT and moving MNIST need no conversion. An interrupted conversion is taken up where it stopped, as long
    as no file of the source has changed; a folder with videos of anything else is refused.
    """

    name: Annotated[Literal["minerl", "gqn-mazes", "carla"], tyro.conf.Positional]
    """minerl: tfrecords of minerl_navigate, or train/ and test/ with .npz, .mp4 or .npy. gqn-mazes: train/ and test/
    with .mp4, or tfrecords. carla: video_N.pt with the lists video_train.csv and video_test.csv."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder with what was downloaded."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; give it to --path later."""


@dataclass(frozen=True)
class ConvertCheckpointOptions:
    """Turn a training checkpoint of the paper's authors into one of ours, to sample from and to evaluate.

    Only tensors are read from it: a file that wants to run anything is refused.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Their model-N.pt."""

    out: Annotated[Path, tyro.conf.Positional]
    """Run folder to write, without a file in it; give it to `ssmvdm sample` and `ssmvdm evaluate`."""

    arguments: Path
    """JSON file with the keyword arguments of their Unet3D, {"dim": 112, "dim_mults": [1, 2, 4, 8], "attn_heads": 14,
    "attn_dim_head": 64, "temporal_arch": "bi-s6", "ssm_version": 20, "ssm_hidden_dim": 16} for the paper's bi-S6."""

    data: Literal["minerl", "gqn-mazes", "carla", "ucf101", "msrvtt", "moving-mnist", "folder"] = "minerl"
    """What it was trained on."""

    frames: int = 256
    """Frames of the clips it was trained on."""

    size: int = 32
    """Their height and width in pixels."""

    loss: Literal["l2", "l1"] = "l2"
    """Of the predicted noise."""


def run_data(options: ConvertDataOptions) -> None:
    from tqdm import tqdm

    from ssmvdm.data.conversion import convert_data_set

    need(video=("av", "PIL"))
    if not options.source.is_dir():
        raise InputError(f"expected a folder, {options.source} is none")
    problems, videos = [], 0
    try:
        for converted in tqdm(convert_data_set(options.name, options.source, options.out), unit=" videos"):
            videos += 1
            if converted.problem is not None:
                problems.append(f"{converted.origin}: {converted.problem}")
                tqdm.write(f"left out: {problems[-1]}")
    except ValueError as error:
        raise InputError(str(error)) from error
    if problems:
        raise InputError(f"{len(problems)} of {videos} videos could not be converted; the first is {problems[0]}")
    print(f"{videos} videos in {options.out}")


def run_checkpoint(options: ConvertCheckpointOptions) -> None:
    from ssmvdm.checkpoint import save
    from ssmvdm.data.source import DataConfig
    from ssmvdm.paper_checkpoint import state_from_paper

    arguments = read_object(options.arguments)
    if not options.source.is_file():
        raise InputError(f"expected a file, {options.source} is none")
    if (file := next((path for path in options.out.rglob("*") if not path.is_dir()), None)) is not None:
        # Beside the checkpoints of anything else its step would be passed over, or replace theirs.
        raise InputError(f"{options.out}: expected a new or empty folder, it has {file}; choose another folder")
    try:
        data = DataConfig(options.data, options.frames, options.size, merge_splits=True)  # as they trained
        state = state_from_paper(options.source, arguments, data, options.loss)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    print(save(options.out / "checkpoints", state))

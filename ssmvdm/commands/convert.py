"""`ssmvdm convert data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError


@dataclass(frozen=True)
class ConvertDataOptions:
    """Turn a data set as it is shipped into one .npy per video, in the folders train and test.

    UCF101, MSR-VTT and moving MNIST need no conversion. An interrupted conversion is taken up where it stopped.
    """

    name: Annotated[Literal["minerl", "gqn-mazes", "carla"], tyro.conf.Positional]
    """minerl: tfrecords of minerl_navigate, or train/ and test/ with .npz, .mp4 or .npy. gqn-mazes: train/ and test/
    with .mp4, or tfrecords. carla: video_N.pt with the lists video_train.csv and video_test.csv."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder with what was downloaded."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; give it to --path later."""


def run_data(options: ConvertDataOptions) -> None:
    from tqdm import tqdm

    from ssmvdm.data.conversion import convert_data_set

    need("video", "av", "PIL")
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

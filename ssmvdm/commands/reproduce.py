"""`ssmvdm reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssmvdm.commands.page import show
from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError


@dataclass(frozen=True)
class ReproduceOptions:
    """Compare temporal layers at equal parameters: loss, samples, memory and time, and what that says of the paper.

    Trains attention, linear attention, S6, bi-S6 and bi-S4D on maze walks, several seeds each. Stopped, it continues
    where it was when it is called again.
    """

    scale: Literal["cpu", "gpu"] = "cpu"
    """cpu: made for 30 minutes of two cores. gpu: made for 25 minutes of one H200, and not run yet."""

    layers: tuple[str, ...] = ()
    """Layers to compare with bi-s6, for ablations: those of `bench memory`, other mixers as in bi-s6/gss. Default:
    attention-sdpa, linear-attention, s6, bi-s4d."""

    base_channels: tuple[int, ...] = ()
    """Other base widths of the networks, multiples of 8. With several, what the layers reach is compared at equal
    memory as well."""

    frames: int | None = None
    """Frames of the training clips."""

    steps: int | None = None
    """Optimiser steps of every run."""

    seeds: int | None = None
    """Runs of every layer."""

    out: Path = Path("reproduce")
    """Folder for the runs and the report; below it a folder for the scale."""

    open: bool = False
    """Show the report in the browser when done."""


def run(options: ReproduceOptions) -> None:
    import torch

    if options.scale == "gpu" and not torch.cuda.is_available():
        raise InputError("--scale gpu: expected a CUDA device, torch finds none here")
    need(train=("accelerate", "PIL"), bench=("matplotlib", "rich"))
    from ssmvdm.report.files import prepare_folder
    from ssmvdm.report.terminal import progress_bar
    from ssmvdm.reproduce.run import reproduce
    from ssmvdm.reproduce.study import ablation, different, study_named
    from ssmvdm.reproduce.widths import reproduce_widths

    numbers = (options.frames, options.steps, options.seeds)
    try:
        widths = sorted(different("base channels", options.base_channels)) or [None]
        studies = [ablation(study_named(options.scale), options.layers, width, *numbers) for width in widths]
    except ValueError as error:
        raise InputError(str(error)) from error
    folder = prepare_folder(options.out / options.scale)
    try:
        with progress_bar() as advance:
            if len(studies) == 1:
                page = reproduce(studies[0], folder, advance)
            else:
                page = reproduce_widths(studies, folder, advance)
    except ValueError as error:  # of runs in the folder that belong to another study
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: the same command goes on in {folder}") from None
    show(page, options.open)

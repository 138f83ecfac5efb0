"""`ssmvdm train`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError, sizes_from_outside
from ssmvdm.json_file import read_object
from ssmvdm.training_config import PRESETS, TrainingConfig


@dataclass(frozen=True)
class TrainOptions:
    """What was asked of `ssmvdm train`."""

    training: TrainingConfig
    out: Path
    dry_run: bool
    resume: bool


def command(argv: Sequence[str]) -> Callable[..., TrainOptions]:
    """The command for this command line: the defaults of its options are those of the run that it names."""
    named = argv[1] if len(argv) > 1 and argv[0] == "train" and not argv[1].startswith("-") else "cpu-demo"

    def train(
        config: Annotated[str, tyro.conf.Positional],
        training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = configuration(named),  # noqa: B008
        out: Path | None = None,
        dry_run: bool = False,
        fresh: bool = False,
    ) -> TrainOptions:
        return TrainOptions(training, Path("runs") / Path(config).stem if out is None else out, dry_run, not fresh)

    train.__doc__ = f"""Train a network, or go on with a run that was interrupted: the same command resumes it.

        Every field of the run is an option, whose default is what the named run has: put the run first. On several GPUs
        or machines: torchrun --nproc-per-node N -m ssmvdm.cli train ...

        Args:
            config: {", ".join(PRESETS)}; or a JSON file with the fields of a run, those that differ from the default.
            out: Folder of the run: checkpoints, log.jsonl, samples, TensorBoard's files. Default: runs/<config>.
            dry_run: Only say what would be trained: shapes, parameters, operations and memory of a step.
            fresh: Begin a new run; a folder that has one already is an error.
        """
    return train


def configuration(name: str) -> TrainingConfig:
    """A preset, or what a JSON file says."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix != ".json":
        raise InputError(f"expected a .json file or one of {', '.join(PRESETS)}, got {name!r}")
    values = read_object(path)
    try:
        return TrainingConfig.from_dict(values)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def run(options: TrainOptions) -> None:
    if options.dry_run:
        from ssmvdm import accounting

        try:
            with sizes_from_outside():
                print(accounting.describe(options.training))
        except ValueError as error:
            raise InputError(str(error)) from error
        return
    need(train=("accelerate", "PIL"))
    from ssmvdm.training import NonFiniteError, train

    try:
        print(train(options.training, options.out, resume=options.resume))
    except (ValueError, NonFiniteError) as error:
        # A process that loads clips hands its error over behind a traceback.
        raise InputError(str(error).rpartition("\nValueError: ")[2].strip()) from error
    _end_group()


def _end_group() -> None:
    """Of the processes of a run that is done: threads of it that live on abort a process that ends."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()

"""`ssmvdm demo`."""

from dataclasses import dataclass
from pathlib import Path

from ssmvdm.commands.page import show
from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError


@dataclass(frozen=True)
class DemoOptions:
    """Train a small bi-S6 on maze walks, sample from it, show the result: under five minutes on two cores."""

    out: Path = Path("demo")
    """Folder for the run, samples.gif, loss.svg and report.html. A run that is there already goes on."""

    open: bool = False
    """Show the report in the browser when done."""


def run(options: DemoOptions) -> None:
    need(train=("accelerate", "PIL"), eval=("matplotlib",))
    from ssmvdm.report.files import prepare_folder
    from ssmvdm.reproduce.demo import demo
    from ssmvdm.training_config import PRESETS

    try:
        report = demo(PRESETS["cpu-demo"], prepare_folder(options.out))
    except ValueError as error:  # of a run in the folder that is another one
        raise InputError(str(error)) from error
    show(report, options.open)

"""What the options of all benchmarks have in common, and checks of them; apart, as the command line needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssmvdm.errors import InputError
from ssmvdm.report.environment import device_name, device_slug

RESULTS = Path("benchmarks/results")  # under the working directory
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class RunOptions:
    """To be inherited: a benchmark adds its own, and `check()`, `quick()` and `full()`."""

    device: str = "cpu"
    """cpu or cuda."""

    out: Path | None = None
    """Folder for the results, where earlier ones are replaced. Default: benchmarks/results/<device> for all --full; for
    anything less a folder inside it, quick or named after the benchmark, which leaves the full results as they are."""

    resume: bool = False
    """Go on with a run into the same folder that was stopped."""

    compare: Path | None = None
    """An earlier result of the same kind (JSON), or a folder of results: say of every row what has changed."""

    open: bool = False
    """Show the report in the browser when done."""

    def folder(self, name: str = "") -> Path:
        """name: of the default's folder inside that of the device."""
        return self.out or device_folder(self.device) / name


def device_folder(device: str) -> Path:
    """Where results of a device go, named by what it calls itself."""
    if device == "cpu":
        return RESULTS / device_slug(device_name())
    from benchmarks.measure import gpu_device

    return RESULTS / device_slug(gpu_device.name(device))


def check_distinct(option: str, values: Sequence) -> None:
    """InputError for a value that comes twice."""
    if len(set(values)) != len(values):
        raise InputError(f"{option}: the same value twice in {' '.join(map(str, values))}")


def check_positive(option: str, value: float) -> None:
    """InputError unless it is a finite number above zero."""
    if not 0.0 < value < float("inf"):
        raise InputError(f"{option}: expected a positive number, got {value}")


def check_device(device: str) -> None:
    """InputError unless it is one of DEVICES, and there."""
    if device not in DEVICES:
        raise InputError(f"--device: expected {' or '.join(DEVICES)}, got {device!r}")
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"--device {device}: no such device can be used: PyTorch finds no CUDA device")

"""What the options of every benchmark have in common, apart so that the command line imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.environment import device_name, device_slug
from benchmarks.report.files import RESULTS


@dataclass(frozen=True)
class RunOptions:
    """To be inherited: a benchmark adds its own, and `check()`, `quick()` and `full()`."""

    out: Path | None = None
    """Folder for the results. Default: benchmarks/results/<device>. Earlier results there are replaced."""

    resume: bool = False
    """Go on with a run into the same folder that was stopped."""

    compare: Path | None = None
    """An earlier result of the same kind (JSON), or a folder of results: say of every row what has changed."""

    open: bool = False
    """Show the report in the browser when done."""

    def folder(self) -> Path:
        return self.out or RESULTS / device_slug(device_name())

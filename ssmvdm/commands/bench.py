"""`ssmvdm bench memory | scan | report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.kernels.scan_options import ScanOptions
from benchmarks.models.memory import MemoryOptions
from ssmvdm.commands.page import show
from ssmvdm.commands.requirements import need


@dataclass(frozen=True)
class ReportOptions:
    """Draw the plot, the table and the HTML report again from a memory.json."""

    results: Annotated[Path, tyro.conf.Positional]
    """A memory.json that `ssmvdm bench memory` wrote."""

    out: Path | None = None
    """Folder for the files. Default: where the JSON lies."""

    open: bool = False
    """Show the report in the browser when done."""


def run_memory(options: MemoryOptions) -> None:
    need("bench", "matplotlib", "rich")
    from benchmarks.models import memory

    memory.run(options)


def run_scan(options: ScanOptions) -> None:
    options.check()
    need("bench", "rich")
    from benchmarks.kernels import scan

    scan.run(options)


def run_report(options: ReportOptions) -> None:
    need("bench", "matplotlib")
    from benchmarks.models import report
    from benchmarks.report.files import prepare_folder

    result = report.load(options.results)
    html = report.write_all(result, prepare_folder(options.out or options.results.parent))
    show(html, options.open)

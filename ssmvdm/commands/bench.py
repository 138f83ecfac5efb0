"""`ssmvdm bench all | scan | layers | memory | report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.kernels.scan_options import ScanOptions
from benchmarks.layers.options import LayerOptions
from benchmarks.models.options import MemoryOptions
from benchmarks.options import RunOptions
from ssmvdm.commands.page import show
from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError


@dataclass(frozen=True)
class AllOptions(RunOptions):
    """All benchmarks into one folder, with one page, report.html: the scan, temporal layers, networks.

    The quick part is made for less than six minutes on two cores.
    """

    full: bool = False
    """Measure at length; made for less than 40 minutes on two cores."""


@dataclass(frozen=True)
class ReportOptions:
    """Write the tables, pictures and the page of results again."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON files of one folder that `ssmvdm bench` wrote."""

    out: Path | None = None
    """Folder for the files. Default: where the first JSON lies."""

    compare: Path | None = None
    """An earlier result of the same kind (JSON), or a folder of results: say of every row what has changed."""

    open: bool = False
    """Show the report in the browser when done."""


def run_all(options: AllOptions) -> None:
    kinds = {"scan": ScanOptions, "layers": LayerOptions, "memory": MemoryOptions}
    extent = "full" if options.full else "quick"
    parts = {name: getattr(kind, extent)(options.device) for name, kind in kinds.items()}
    _run(parts, options, "report", "" if options.full else "quick")


def run_scan(options: ScanOptions) -> None:
    _run({"scan": options}, options, "scan", "scan")


def run_layers(options: LayerOptions) -> None:
    _run({"layers": options}, options, "layers", "layers")


def run_memory(options: MemoryOptions) -> None:
    _run({"memory": options}, options, "memory", "memory")


def _run(parts: dict, how: RunOptions, stem: str, folder_name: str) -> None:
    for options in parts.values():
        options.check()
    need(bench=("matplotlib", "rich"))
    from benchmarks import runner

    show(runner.run(parts, how, stem, how.folder(folder_name)), how.open)


def run_report(options: ReportOptions) -> None:
    need(bench=("matplotlib", "rich"))
    from benchmarks import runner
    from benchmarks.report import compare
    from benchmarks.report.files import write_all
    from ssmvdm.report.files import prepare_folder

    results = [compare.load(path) for path in options.results]
    names = [result["kind"] for result in results]
    if not names or len(set(names)) < len(names):
        raise InputError(f"bench report: expected results of different kinds, got {', '.join(names) or 'none'}")
    old = compare.earlier(options.compare, names) if options.compare else {}
    folder = prepare_folder(options.out or options.results[0].parent)
    changes = compare.changes(results, old)
    page = write_all(results, changes, folder, names[0] if len(names) == 1 else "report")
    runner.show_tables(results, changes)
    show(page, options.open)

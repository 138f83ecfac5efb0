"""One or several benchmarks as one run: a journal while it lasts, then all files, the tables and a page."""

import importlib
import time
from pathlib import Path

from benchmarks.measure.journal import Journal
from benchmarks.options import RunOptions
from benchmarks.report import compare
from benchmarks.report.files import write_all
from benchmarks.report.kinds import all_tables, kind_named
from ssmvdm.lock import only_one
from ssmvdm.report import terminal
from ssmvdm.report.environment import busy_warning, stamp
from ssmvdm.report.files import prepare_folder
from ssmvdm.report.tables import Table

# The module with measure(options, advance, journal) -> result. advance(what comes, work done, work in all) reports
# progress; every request to a process goes through the journal.
MEASURING = {
    "scan": "benchmarks.kernels.scan",
    "layers": "benchmarks.layers.layers",
    "memory": "benchmarks.models.memory",
}


def run(parts: dict[str, RunOptions], how: RunOptions, stem: str, folder: Path) -> Path:
    """Measure the parts, by the names of their kinds, with their own options, into the folder; <stem> names journal and
    page, `how` says whether to go on with a stopped run and what to compare with. Returns the path of the page."""
    old = compare.earlier(how.compare, list(parts)) if how.compare else {}
    importlib.import_module("benchmarks.report.pictures")  # what it lacks is missed before anything is measured
    prepare_folder(folder)
    with only_one(folder):
        journal = Journal(folder / f"{stem}.journal", stamp(), how.resume)
        results = measured(parts, journal)
        changes = compare.changes(results, old)
        page = write_all(results, changes, folder, stem)
        journal.discard()
    show_tables(results, changes)
    return page


def measured(parts: dict[str, RunOptions], journal: Journal) -> list[dict]:
    """A result for each part."""
    results = []
    try:
        with terminal.progress_bar() as advance:
            for name, options in parts.items():
                start, spared = time.monotonic(), journal.spared_seconds
                measure = importlib.import_module(MEASURING[name]).measure
                result = measure(options, advance, journal)
                result["wall_seconds"] = time.monotonic() - start + journal.spared_seconds - spared
                results.append(result)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: the same command with --resume goes on") from None
    return results


def show_tables(results: list[dict], changes: dict[str, Table]) -> None:
    """On standard output, with the comparisons by kind."""
    console = terminal.stdout_console()
    for result in results:
        kind = kind_named(result["kind"])
        for table in (*all_tables(kind, result), *([changes[kind.name]] if kind.name in changes else [])):
            terminal.show(console, table)
        if warning := busy_warning(result["environment"]):
            console.print(f"[red]{warning}[/]", soft_wrap=True)

"""One or several benchmarks as one run: a journal while it lasts, then all files, the tables and a page."""

import importlib
import time
from pathlib import Path

from benchmarks.measure.journal import Journal
from benchmarks.options import RunOptions
from benchmarks.report import compare
from benchmarks.report.files import all_tables, write_all
from benchmarks.report.kinds import kind_named
from ssmvdm.report import terminal
from ssmvdm.report.environment import busy_warning, stamp
from ssmvdm.report.files import prepare_folder

# The module with measure(options, advance, journal) -> result. advance(what comes, work done, work in all) reports
# progress; every request to a process goes through the journal.
MEASURING = {
    "scan": "benchmarks.kernels.scan",
    "layers": "benchmarks.layers.layers",
    "memory": "benchmarks.models.memory",
}


def run(parts: dict[str, RunOptions], how: RunOptions, stem: str) -> Path:
    """Measure the parts, by the names of their kinds, with their own options; where results go and what is done with
    them is said by `how`, and <stem> names journal and page. Returns the path of the page."""
    old = compare.earlier(how.compare, list(parts)) if how.compare else {}
    importlib.import_module("benchmarks.report.pictures")  # what it lacks is missed before anything is measured
    folder = prepare_folder(how.folder())
    journal = Journal(folder / f"{stem}.journal", stamp(), how.resume)
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
    page = present(results, old, folder, stem)
    journal.discard()
    return page


def present(results: list[dict], old: dict[str, dict], folder: Path, stem: str) -> Path:
    """Write the files, print the tables; the page's path. old: earlier results to compare with, by kind."""
    changes = {
        result["kind"]: compare.comparison(kind_named(result["kind"]), old[result["kind"]], result)
        for result in results if result["kind"] in old
    }  # fmt: skip
    page = write_all(results, changes, folder, stem)
    console = terminal.stdout_console()
    for result in results:
        kind = kind_named(result["kind"])
        for table in (*all_tables(kind, result), *([changes[kind.name]] if kind.name in changes else [])):
            terminal.show(console, table)
        if warning := busy_warning(result["environment"]):
            console.print(f"[red]{warning}[/]", soft_wrap=True)
    return page

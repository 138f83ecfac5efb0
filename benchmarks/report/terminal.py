"""What a benchmark shows while and after it runs: a progress bar with the time left, and tables."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.report.tables import Table
from benchmarks.shapes import GIB, layer_named

MIB = 2**20


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float, float], None]]:
    """Yields advance(description, done, total). On standard error, so that standard output is the result alone; lines
    instead of a bar where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # A long window for the speed estimate: one measurement takes seconds.
    console = Console(stderr=True)
    with Progress(*columns, console=console, speed_estimate_period=120.0, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def advance(description: str, done: float, total: float) -> None:
            progress.update(task, description=description, completed=done, total=total)
            if not console.is_terminal:  # a log file: one line per measurement
                console.print(f"{100 * done / total:3.0f} %  {description}", highlight=False, soft_wrap=True)

        yield advance


def stdout_console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 160)


def table(description: Table) -> RichTable:
    """Title, table, caption."""
    made = RichTable(title=description.title, title_justify="left", title_style="bold",
                     caption=description.caption or None, caption_justify="left")  # fmt: skip
    for index, name in enumerate(description.header):
        made.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    for row in description.rows:
        made.add_row(*map(Text, row))
    return made


def memory_table(result: dict) -> Iterator[RichTable]:
    """One table per quantity: layers down, frames across."""
    frames = result["settings"]["frames"]
    network = result["settings"]["network"]
    setting = f"base {network['base_channels']}, {network['size']}x{network['size']}, batch 1"
    yield _table(f"Peak memory of a training step, MiB ({setting})", result["training"], frames, _peak)
    yield _table(f"Time of a training step, s ({setting})", result["training"], frames, _seconds)
    yield _modes_table(result["modes"])
    if result["saved"]:
        title = "Saved for backward, GiB (paper's setting: base 112, 32x32, batch 1)"
        yield _table(title, result["saved"], frames, lambda row: f"{row['saved_bytes'] / GIB:.2f}")


def _modes_table(rows: list[dict]) -> RichTable:
    title = 'Time of a training step, memory "lean" over "fast"'
    table = RichTable(title=title, title_justify="left", title_style="bold")
    table.add_column("temporal layer")
    table.add_column(f"{rows[0]['frames']} frames", justify="right")
    for row in rows:
        table.add_row(layer_named(row["layer"]).label, ratio_cell(row) if row["status"] == "ok" else row["status"])
    return table


def ratio_cell(row: dict) -> str:
    """Ratio of a comparison of modes and the two medians in seconds."""
    lean, fast = (median(x for x in row["step_seconds"][mode] if x is not None) for mode in ("lean", "fast"))
    return f"{row['ratio']:.2f} ({lean:.2f} / {fast:.2f} s)"


def _peak(row: dict) -> str:
    return f"{median(row['peak_bytes']) / MIB:.0f}"


def _seconds(row: dict) -> str:
    return f"{median(row['step_seconds']):.2f}"


def _table(title: str, rows: list[dict], frames: list[int], cell: Callable[[dict], str]) -> RichTable:
    table = RichTable(title=title, title_justify="left", title_style="bold")
    table.add_column("temporal layer")
    table.add_column("parameters", justify="right")
    for count in frames:
        table.add_column(f"{count} frames", justify="right")
    for name in dict.fromkeys(row["layer"] for row in rows):
        by_frames = {row["frames"]: row for row in rows if row["layer"] == name}
        cells = [cell(row) if row["status"] == "ok" else f"[red]{row['status']}[/]" for row in by_frames.values()]
        table.add_row(layer_named(name).label, parameters_cell(by_frames.values()), *cells)
    return table


def parameters_cell(rows: Iterable[dict]) -> str:
    """Parameters of the network in millions, from the first row of a layer that has them."""
    counts = [row["parameters"] for row in rows if "parameters" in row]
    return f"{counts[0] / 1e6:.2f} M" if counts else "–"

"""What a benchmark shows while and after it runs: a progress bar with the time left, and tables."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from ssmvdm.report.tables import Table


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


def show(console: Console, table: Table) -> None:
    """Title, table, caption."""
    made = RichTable(title=Text(table.title), title_justify="left", title_style="bold")
    for index, name in enumerate(table.header):
        made.add_column(Text(name), justify="left" if table.is_prose(index) else "right", overflow="fold")
    for row in table.rows:
        made.add_row(*map(Text, row))
    console.print(made)
    if table.caption:
        console.print(Text(table.caption), style="dim")

"""A table as it is described once, and shown as Markdown here, in the terminal (`terminal`) and on a page (`page`)."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Text alone. The first column names what a row is about, the others have numbers, or words where there are none.
    caption: what one needs to know to read it; may be empty. prose: the other columns that have sentences."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    prose: tuple[str, ...] = ()

    def is_prose(self, column: int) -> bool:
        return column == 0 or self.header[column] in self.prose

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"table {self.title!r}: expected rows of {len(self.header)} cells, got {row}")


def pivot(cells: Iterable[tuple[str, Hashable, str]], columns: Sequence[Hashable]) -> list[list[str]]:
    """Rows from (label of the row, column, text), in the order in which the labels come; a dash where there is none."""
    rows: dict[str, dict[Hashable, str]] = {}
    for label, column, text in cells:
        rows.setdefault(label, {})[column] = text
    return [[label, *(texts.get(column, "–") for column in columns)] for label, texts in rows.items()]


def markdown(table: Table) -> str:
    """A section: heading, caption, table."""
    return (
        "\n\n".join(filter(None, [f"## {table.title}", table.caption, grid(table.header, table.rows, table.prose)]))
        + "\n"
    )


def grid(header: list[str], rows: list[list[str]], prose: tuple[str, ...] = ()) -> str:
    """The table alone, numbers to the right."""
    lines = [header, ["---", *("---" if name in prose else "--:" for name in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)

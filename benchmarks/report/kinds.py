"""The kinds of results there are. A benchmark describes its own once, in a `Kind`; files, pages, the terminal and
comparisons are made from that by the rest of this package.

A result is {"schema": 1, "kind", "environment", "settings", <section>: [rows], "wall_seconds"}. A row has the fields
that say what it is about, "status" ("ok", or in words why there is no number: "out of memory", "timeout", "gate
failed", "error", "not applicable"), "detail", "gate" where there was one, and, if it is "ok", what was measured.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ssmvdm.report.tables import Table

OK, NOT_APPLICABLE = "ok", "not applicable"
TIME_DRIFT, PEAK_DRIFT = 0.2, 0.05  # of nine in ten rows of full runs on one idle machine, hours and days apart
_MODULES = {"scan": "benchmarks.kernels.kind", "layers": "benchmarks.layers.kind", "memory": "benchmarks.models.kind"}


@dataclass(frozen=True)
class Measure:
    """A quantity of the rows of a section that have the status "ok" and for which `samples` gives any.

    keys: the fields that tell rows apart; field: its name in CSV files and comparisons; samples: every value that was
    measured, one where it is counted and exact; unit: "s", "bytes", "frames/s", "1"; better: "lower" or "higher";
    drift: the share by which two runs of one program differ beyond the noise within each, zero for what is counted.
    """

    section: str
    keys: tuple[str, ...]
    field: str
    samples: Callable[[dict], list[float]]
    unit: str
    better: str
    drift: float


@dataclass(frozen=True)
class Kind:
    """How results of one benchmark are shown.

    name: of the kind and of its files; title: above its tables; check: raises KeyError, TypeError, ValueError,
    AttributeError or IndexError if a part that the others use is missing; tables, pictures
    (`benchmarks.report.pictures.Picture`), method (how it was measured, in a paragraph): of a result that has passed
    the check.
    """

    name: str
    title: str
    check: Callable[[dict], None]
    tables: Callable[[dict], list[Table]]
    pictures: Callable[[dict], list[Any]]
    measures: tuple[Measure, ...]
    method: Callable[[dict], str]

    def sections(self) -> dict[str, tuple[str, ...]]:
        """The keys of every section that is measured."""
        return {measure.section: measure.keys for measure in self.measures}


def kind_named(name: str) -> Kind:
    """ValueError listing the kinds there are."""
    if name not in _MODULES:
        raise ValueError(f"unknown kind of result {name!r}; expected one of {', '.join(_MODULES)}")
    return importlib.import_module(_MODULES[name]).KIND


def cell(row: dict | None, shown: Callable[[dict], str]) -> str:
    """Of a table: shown(row) if the row has numbers, else why it has none; a dash where there is no row."""
    if row is None:
        return "–"
    return shown(row) if row["status"] == OK else row["status"]


def all_tables(kind: Kind, result: dict) -> list[Table]:
    """The kind's own, and the rows that have no number, if there are any."""
    missing = without_numbers(kind, result)
    return [*kind.tables(result), *([missing] if missing else [])]


def without_numbers(kind: Kind, result: dict) -> Table | None:
    """What is not "ok", rows with the same reason together; None if everything is."""
    found: dict[tuple[str, str], list[str]] = {}
    for section, keys in kind.sections().items():
        for row in result[section]:
            if row["status"] != OK:
                found.setdefault((row["status"], row["detail"]), []).append(f"{section}: {about(row, keys)}")
    if not found:
        return None
    rows = [[status, detail, "; ".join(names)] for (status, detail), names in found.items()]
    return Table("Without a number", "", ["status", "reason", "rows"], rows, prose=("reason", "rows"))


def about(row: dict, keys: tuple[str, ...]) -> str:
    """The fields that tell the row from others, in words."""
    return ", ".join(f"{row[key]}" if isinstance(row[key], str) else f"{key} {row[key]}" for key in keys)

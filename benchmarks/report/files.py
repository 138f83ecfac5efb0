"""The files of a benchmark's results, named after its kind."""

import csv
from collections.abc import Iterable
from pathlib import Path
from statistics import median, quantiles

from benchmarks.report import pictures
from benchmarks.report.kinds import Kind, all_tables, kind_named
from benchmarks.report.result_page import result_page
from ssmvdm.report.environment import busy_warning, one_line
from ssmvdm.report.files import all_or_none, in_json
from ssmvdm.report.tables import Table, markdown


def write_all(results: list[dict], changes: dict[str, Table], folder: Path, stem: str) -> Path:
    """Of every result JSON, CSV, Markdown and its pictures, each named after its kind; of all together one page,
    <stem>.html, whose path is returned. Pictures that the kinds no longer have are removed. changes: comparisons with
    earlier results by kind."""
    with all_or_none(folder) as draft:
        for result in results:
            kind = kind_named(result["kind"])
            (draft / f"{kind.name}.json").write_text(in_json(result), encoding="utf-8")
            (draft / f"{kind.name}.md").write_text(in_markdown(kind, result, changes.get(kind.name)), encoding="utf-8")
            write_csv(kind, result, draft / f"{kind.name}.csv")
            for picture in kind.pictures(result):
                pictures.save(picture, result["environment"], draft)
        (draft / f"{stem}.html").write_text(result_page(results, changes), encoding="utf-8")
        written = {path.name for path in draft.iterdir()}
    for result in results:
        for path in (*folder.glob(f"{result['kind']}-*.svg"), *folder.glob(f"{result['kind']}-*.png")):
            if path.name not in written:
                path.unlink()
    return folder / f"{stem}.html"


def in_markdown(kind: Kind, result: dict, change: Table | None) -> str:
    """Title, where it was measured, every table, what has no number, and how it was measured."""
    stamp = ". ".join(filter(None, [one_line(result["environment"]), busy_warning(result["environment"])]))
    tables = [*all_tables(kind, result), *([change] if change else [])]
    parts = [f"# {kind.title}\n", f"{stamp}\n", *map(markdown, tables), f"## Method\n\n{kind.method(result)}\n"]
    return "\n".join(parts)


def write_csv(kind: Kind, result: dict, path: Path) -> None:
    """A line per row and quantity: its keys, how many samples, their median, 10th and 90th percentile."""
    keys = list(dict.fromkeys(key for own in kind.sections().values() for key in own))
    numbers = ("quantity", "unit", "samples", "median", "p10", "p90")
    fields = ["section", *keys, *numbers, "status", "detail", "gate_passed"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fields, extrasaction="ignore")
        writer.writeheader()
        for measure in kind.measures:
            for row in result[measure.section]:
                values = list(measure.samples(row)) if row["status"] == "ok" else []
                if not values and row["status"] == "ok":
                    continue  # the row is not about this quantity
                line = {key: row[key] for key in ("status", "detail", *measure.keys)}
                line |= {"section": measure.section, "quantity": measure.field, "unit": measure.unit}
                line |= {"samples": len(values), "gate_passed": row.get("gate", {}).get("passed", "")}
                writer.writerow(line | (spread(values) if values else {}))


def spread(samples: Iterable[float]) -> dict[str, float]:
    """{"median", "p10", "p90"}."""
    values = sorted(samples)
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return {"median": median(values), "p10": cuts[0], "p90": cuts[-1]}

"""Studies that differ in the width of their networks: each for itself, then all of them at equal memory."""

import json
from collections.abc import Callable
from pathlib import Path

from ssmvdm.report.environment import describe
from ssmvdm.report.files import in_json
from ssmvdm.reproduce.equal_memory import comparisons, rows_of
from ssmvdm.reproduce.jobs import jobs_of
from ssmvdm.reproduce.run import STEM, reproduce, write
from ssmvdm.reproduce.study import Study
from ssmvdm.reproduce.tables import labels_of
from ssmvdm.reproduce.widths_page import widths_markdown, widths_page

WIDTHS_STEM = "equal-memory"


def reproduce_widths(studies: list[Study], folder: Path, advance: Callable[[str, float, float], None]) -> Path:
    """`reproduce` for every study, in ascending width, each in a folder base-<width> of its own; then
    equal-memory.json, .md and .html in `folder`, which exists. Returns that page."""
    environment = describe(threads=1)
    weights = [study.network.base_channels * sum(job.weight for job in jobs_of(study)) for study in studies]
    results = []
    for index, study in enumerate(studies):
        width, before = study.network.base_channels, sum(weights[:index])

        def advance_all(what: str, done: float, total: float, index=index, width=width, before=before) -> None:
            advance(f"width {width}: {what}", before + weights[index] * done / total, sum(weights))

        place = folder / f"base-{width}"
        place.mkdir(exist_ok=True)
        reproduce(study, place, advance_all)
        results.append(json.loads((place / f"{STEM}.json").read_text(encoding="utf-8")))
    result = together(results) | {"environment": environment}
    write(folder / f"{WIDTHS_STEM}.json", in_json(result))
    write(folder / f"{WIDTHS_STEM}.md", widths_markdown(result))
    write(folder / f"{WIDTHS_STEM}.html", widths_page(result))
    return folder / f"{WIDTHS_STEM}.html"


def together(results: list[dict]) -> dict:
    """The results of studies that differ in the width alone, as one."""
    rows = rows_of(results)
    seconds = [result["wall_seconds"] for result in results]
    return {
        "schema": 1,
        "kind": "equal-memory",
        "device": results[0]["device"],
        "study": results[0]["study"],
        "base_channels": [result["study"]["network"]["base_channels"] for result in results],
        "rows": rows,
        "floor": results[0]["frechet"]["floor"],
        "conclusions": comparisons(rows, labels_of(results[0])),
        "wall_seconds": None if None in seconds else sum(seconds),
    }

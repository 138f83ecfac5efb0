"""A result beside an earlier one of its kind, row by row, with a verdict where the difference leaves the noise.

The noise band of a ratio of two medians is where it falls when both runs' samples are drawn again, with replacement, as
many as there are: the middle BAND of RESAMPLES such ratios, widened by the quantity's drift, by which two runs of one
program differ though nothing has changed. The verdict is "same" while the band contains 1. What is counted has one
sample and no drift, so any difference is one.
"""

from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.report.kinds import OK, Kind, Measure, about, kind_named
from ssmvdm.errors import InputError
from ssmvdm.json_file import read_object
from ssmvdm.process_memory import GIB, MIB
from ssmvdm.report.environment import one_line
from ssmvdm.report.tables import Table

RESAMPLES = 2000
BAND = 0.95
VERDICTS = {"s": ("faster", "slower"), "frames/s": ("faster", "slower"), "bytes": ("less memory", "more memory")}
HEADER = ["row", "quantity", "before", "now", "now / before", "noise band", "verdict"]


def load(path: Path) -> dict:
    """A result of any kind. InputError if the file cannot be read, is no JSON, or is something else."""
    result = read_object(path)
    try:
        if result["schema"] != 1:
            raise ValueError(f"schema {result['schema']!r}")
        kind = kind_named(result["kind"])
        _ = one_line(result["environment"]), float(result["wall_seconds"]), result["settings"]
        for section, keys in kind.sections().items():
            for row in result[section]:
                _ = about(row, keys), str(row["status"]), str(row["detail"])
        for measure in kind.measures:
            _ = by_keys(measure, result)
        kind.check(result)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is not a result of `ssmvdm bench`: {error!r}") from error
    return result


def earlier(path: Path, names: list[str]) -> dict[str, dict]:
    """Earlier results by the names of their kinds: path is one of them, or a folder of results. InputError if there is
    none of these kinds."""
    paths = [path / f"{name}.json" for name in names if (path / f"{name}.json").exists()] if path.is_dir() else [path]
    found = {result["kind"]: result for result in map(load, paths)}
    if not found.keys() & set(names):
        expected = " or ".join(f"{name}.json" for name in names)
        raise InputError(f"--compare: expected a result of {' or '.join(names)} ({expected}), {path} has none")
    return found


def changes(results: list[dict], old: dict[str, dict]) -> dict[str, Table]:
    """The comparisons by kind; old: earlier results by kind."""
    pairs = [(result["kind"], old[result["kind"]], result) for result in results if result["kind"] in old]
    return {kind: comparison(kind_named(kind), before, now) for kind, before, now in pairs}


def comparison(kind: Kind, old: dict, new: dict) -> Table:
    """One row for every row and quantity of either."""
    rows = [row for measure in kind.measures for row in _compared(measure, old, new)]
    counts: dict[str, int] = {}
    for *_, verdict in rows:
        counts[verdict] = counts.get(verdict, 0) + 1
    caption = (
        f"Before: {one_line(old['environment'])}. Now: {one_line(new['environment'])}. "
        f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}. The noise band is where "
        f"{100 * BAND:.0f} % of {RESAMPLES} ratios of medians fall when the samples of both runs are drawn again, and "
        f"for what is measured wider by what two runs of one program differ by: {_drifts(kind)}."
    )
    if told := _settings_that_differ(old["settings"], new["settings"]):
        caption += f" The settings differ, which the verdicts do not know: {told}."
    if old["environment"]["device"] != new["environment"]["device"]:
        caption += " These are two devices: the verdicts compare machines, not only programs."
    return Table(f"{kind.title}: what has changed", caption, HEADER, rows)


def _drifts(kind: Kind) -> str:
    told = [f"{measure.field} {100 * measure.drift:.0f} %" for measure in kind.measures if measure.drift]
    return ", ".join(dict.fromkeys(told))


def _settings_that_differ(old: dict, new: dict) -> str:
    """In words, values where they are short; not what is free on a machine, which never is the same."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and name != "memory_limit_bytes"]
    told = []
    for name in names:
        values = f"{old.get(name)} before, {new.get(name)} now"
        told.append(f"{name} ({values})" if len(values) <= 80 else name)
    return ", ".join(told)


def by_keys(measure: Measure, result: dict) -> dict[tuple, tuple[str, list[float]]]:
    """(status, samples) of every row of the measure's section that has the quantity, or that has no numbers at all."""
    found = {}
    for row in result[measure.section]:
        samples = [float(value) for value in measure.samples(row)] if row["status"] == OK else []
        if samples or row["status"] != OK:
            found[tuple(row[key] for key in measure.keys)] = (row["status"], samples)
    return found


def _compared(measure: Measure, old: dict, new: dict) -> list[list[str]]:
    before, now = by_keys(measure, old), by_keys(measure, new)
    rows = []
    for key in {**now, **before}:
        name = f"{measure.section}: {about(dict(zip(measure.keys, key, strict=True)), measure.keys)}"
        a, b = before.get(key), now.get(key)
        if a and b and a[1] and b[1]:
            cells = _judged(measure, a[1], b[1])
        else:
            cells = ["–", "–", _changed(a, b)]
        rows.append([name, measure.field, _shown(measure, a), _shown(measure, b), *cells])
    return rows


def _judged(measure: Measure, before: list[float], now: list[float]) -> list[str]:
    """Ratio, noise band, verdict. Zero before and now is one; zero before alone is beyond any band."""
    ratio, (low, high) = ratio_and_band(before, now)
    low, high = low / (1 + measure.drift), high * (1 + measure.drift)
    better, worse = VERDICTS.get(measure.unit, ("better", "worse"))
    if measure.better == "higher":
        better, worse = worse, better
    verdict = better if high < 1 else worse if low > 1 else "same"
    return [f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", verdict]


def ratio_and_band(before: list[float], now: list[float]) -> tuple[float, tuple[float, float]]:
    """median(now) / median(before), and the band it falls in by resampling, always the same for the same samples."""
    generator = np.random.default_rng(0)

    def medians(samples: list[float]) -> np.ndarray:
        drawn = generator.integers(len(samples), size=(RESAMPLES, len(samples)))
        return np.median(np.asarray(samples)[drawn], axis=1)

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = medians(now) / medians(before)
        ratio = np.float64(median(now)) / np.float64(median(before))
    ratios = np.where(np.isnan(ratios), 1.0, ratios)
    low, high = np.quantile(ratios, [(1 - BAND) / 2, (1 + BAND) / 2], method="nearest")
    return float(1.0 if np.isnan(ratio) else ratio), (float(low), float(high))


def _changed(before: tuple[str, list[float]] | None, now: tuple[str, list[float]] | None) -> str:
    """The verdict where one side or both have no number."""
    if before is None:
        return "new"
    if now is None:
        return "gone"
    if now[1]:
        return "fixed"
    return "broken" if before[1] else "same"


def _shown(measure: Measure, entry: tuple[str, list[float]] | None) -> str:
    if entry is None:
        return "–"
    status, samples = entry
    return in_unit(median(samples), measure.unit) if samples else status


def in_unit(value: float, unit: str) -> str:
    """A value for people: 1.23 ms, 45.6 MiB, 12."""
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    if unit == "bytes":
        return f"{value / GIB:.2f} GiB" if value >= GIB else f"{value / MIB:.1f} MiB"
    return f"{value:.4g}" + ("" if unit == "1" else f" {unit}")

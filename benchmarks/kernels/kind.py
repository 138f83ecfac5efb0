"""How results of the scan benchmark are shown."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from matplotlib.axes import Axes

from benchmarks.kernels.floors import CPU_BACKWARD
from benchmarks.kernels.shapes import MODES, Shape
from benchmarks.report.files import spread
from benchmarks.report.kinds import NOT_APPLICABLE, OK, PEAK_DRIFT, TIME_DRIFT, Kind, Measure, cell
from benchmarks.report.pictures import Panel, Picture
from ssmvdm.report.plots import Theme, curves
from ssmvdm.report.tables import Table, pivot

SWEEPS = {"length": "lengths", "channels": "channels", "sequences": "sequences"}  # the size -> what is swept over


@dataclass(frozen=True)
class Curve:
    """A candidate as it is drawn, see `ssmvdm.report.plots.Curve`."""

    name: str
    label: str
    color: tuple[str, str]
    marker: str


NBSP = "\N{NO-BREAK SPACE}"
MARKS = {  # color and marker: Okabe and Ito's palette, as `ssmvdm.compared` has it for layers
    "ours": (("#007A5A", "#2BD4A4"), "o"),
    "triton": (("#4C9A2A", "#A5D66F"), "h"),  # ours too
    "mamba-ssm": (("#000000", "#FFFFFF"), "X"),
    "s4d-scan": (("#B0568A", "#CC79A7"), "P"),
    "s4d-fft": (("#857A00", "#F0E442"), "v"),
    "sdpa-8x64": (("#B8860B", "#E69F00"), "D"),
    "sdpa-equal": (("#D55E00", "#FF8A3D"), "s"),
    "eager": (("#000000", "#FFFFFF"), "X"),
    "pscan": (("#0072B2", "#56B4E9"), "^"),
    "associative": (("#6A3D9A", "#B39DDB"), "<"),
    "compiled": (("#5F6B7A", "#AEB8C4"), ">"),
}


def check(result: dict) -> None:
    """Raises whatever comes first when a part that is drawn or tabulated is missing."""
    settings = result["settings"]
    for sizes in settings["shapes"].values():
        _ = _shape(sizes).exponentials(), str(sizes["source"]), bool(sizes["is_sweep"])
    _ = settings["base"] + "", settings["dtypes"][0], settings["threads"][0], settings["launches"] + 1
    _ = settings["keeps_freed_memory"], settings["device"] + "", result["rates"].get("exponentials_per_second")
    _ = [result["settings"]["shapes"][row["shape"]] for row in result["clocks"]], settings["caches"]
    for row in result["times"]:
        _ = settings["shapes"][row["shape"]], str(row["label"]), bool(row["is_ours"]), MODES.index(row["mode"])
        if row["status"] == OK:
            _ = median(row["seconds"]), float(row.get("ratio", 1)), dict(row.get("shares_of_floor", {}))
    for row in result["threads"]:
        _ = settings["shapes"][row["shape"]], MODES.index(row["mode"]), row["threads"] + 1, median(row["speedup"])
    for row in result["memory"]:
        _ = settings["shapes"][row["shape"]], row["status"] != OK or float(row["tensors"])


def _shape(sizes: dict) -> Shape:
    return Shape(sizes["sequences"], sizes["channels"], sizes["length"], sizes["states"])


def tables(result: dict) -> list[Table]:
    found = [_shapes(result)]
    for mode in MODES:
        found += [table for table in (_rivals(result, mode), _ours(result, mode)) if table.rows]
    found += [_sweep(result, size) for size in SWEEPS if len(_swept(result, size)) > 1]
    if result["threads"]:
        found.append(_threads(result))
    found += [_memory(result)] if result["memory"] else []
    return [*found, _clocks(result)] if result["clocks"] else found


def _full(result: dict) -> list[str]:
    """Names of the shapes that everything is measured at, and of those in no sweep that is shown."""
    sweeps = [points for points in (_swept(result, size) for size in SWEEPS) if len(points) > 1]
    swept = {name for points in sweeps for _, name in points}
    shapes = result["settings"]["shapes"].items()
    return [name for name, sizes in shapes if not sizes["is_sweep"] or name not in swept]


def _shapes(result: dict) -> Table:
    rows = []
    for name, sizes in result["settings"]["shapes"].items():
        numbers = [f"{sizes[key]:,}" for key in ("sequences", "length", "channels", "states")]
        rows.append([name, *numbers, sizes["source"]])
    return Table("Shapes", "", ["shape", "sequences", "length", "channels", "states", "source"], rows, ("source",))


def _cells(result: dict, mode: str, is_ours: bool, shown: Callable[[dict], str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) with a column for each full shape and a row for each candidate."""
    shapes = [name for name in _full(result) if any(row["shape"] == name for row in result["times"])]
    rows = [row for row in result["times"]
            if (row["mode"], row["is_ours"]) == (mode, is_ours) and row["shape"] in shapes]  # fmt: skip
    return shapes, pivot(((row["label"], row["shape"], cell(row, shown)) for row in rows), shapes)


def _rivals(result: dict, mode: str) -> Table:
    def shown(row: dict) -> str:
        star = "*" if row["timed_sequences"] < result["settings"]["shapes"][row["shape"]]["sequences"] else ""
        return f"{row['ratio']:.3g}{star}" if "ratio" in row else "–"

    shapes, rows = _cells(result, mode, False, shown)
    rows = [[label, *cells] for label, *cells in rows if set(cells) - {NOT_APPLICABLE, "–"}]
    caption = (
        f"Time over that of {result['settings']['base']}, measured in turns, median of the rounds. *: timed on fewer "
        "sequences than ours and extrapolated."
    )
    return Table(f"Rivals, {mode}: how many times as long as ours", caption, ["rival", *shapes], rows)


def _ours(result: dict, mode: str) -> Table:
    shapes, rows = _cells(result, mode, True, lambda row: f"{_milliseconds(row)} {_shares(row)}")
    names = dict.fromkeys(name for row in result["times"] for name in row.get("shares_of_floor", {}))
    of = "time" if mode == "forward" else "backward pass's time"
    caption = (
        f"ms: median (10th to 90th percentile); in brackets the shares of the {of} that floors would take by "
        f"themselves: {', '.join(names) or 'none known'}. What memory would take is of traffic beyond the caches, and "
        "may be more than all where they hold the tensors."
    )
    if mode != "forward" and "exponentials" in names:
        caption += f" A backward step counts as {CPU_BACKWARD:.1f} exponentials, by its operations."
    return Table(f"Ours, {mode}", caption, ["layout, type", *shapes], rows)


def _milliseconds(row: dict) -> str:
    found = {key: 1e3 * value for key, value in spread(row["seconds"]).items()}
    return f"{found['median']:.3g} ({found['p10']:.3g}{NBSP}to{NBSP}{found['p90']:.3g})"


def _shares(row: dict) -> str:
    shares = row.get("shares_of_floor", {})
    return f"[{f',{NBSP}'.join(f'{100 * share:.0f}{NBSP}%' for share in shares.values())}]" if shares else ""


def _swept(result: dict, size: str) -> list[tuple[int, str]]:
    """(size, name) of the shapes in the sweep over it, in order of size; found shapes that fit among them too."""
    shapes = result["settings"]["shapes"]
    swept = [sizes for sizes in shapes.values() if sizes["source"] == f"sweep over {SWEEPS[size]}"]
    others = [key for key in ("sequences", "length", "channels") if key != size]
    found = [
        (sizes[size], name) for name, sizes in shapes.items()
        if swept and all(sizes[key] == swept[0][key] for key in others)
    ]  # fmt: skip
    return sorted(found)


def _sweep(result: dict, size: str) -> Table:
    """Of the candidates that the sweep has: nanoseconds per element, both modes."""
    points = _swept(result, size)
    header = ["ns per element", *(f"{value:,}" for value, _ in points)]
    cells = (
        (f"{row['label']}, {row['mode']}", row["shape"], cell(row, lambda row: f"{_nanoseconds(result, row):.3g}"))
        for row in _rows_of(result, points)
    )
    body = pivot(cells, [name for _, name in points])
    sizes = result["settings"]["shapes"][points[0][1]]
    fixed = ", ".join(f"{sizes[key]:,} {key}" for key in ("sequences", "channels") if key != size)
    fixed += "" if size == "length" else f", length {sizes['length']}"
    return Table(f"Sweep over {SWEEPS[size]}", f"Median; {fixed}. An element is one channel at one time.", header, body)


def _nanoseconds(result: dict, row: dict) -> float:
    return 1e9 * median(row["seconds"]) / _shape(result["settings"]["shapes"][row["shape"]]).elements()


def _threads(result: dict) -> Table:
    shapes = list(dict.fromkeys(row["shape"] for row in result["threads"]))
    first = result["settings"]["threads"][0]
    cells = (
        (f"{first} to {row['threads']} threads, {row['mode']}", row["shape"], f"{median(row['speedup']):.2f}")
        for row in result["threads"]
    )
    body = pivot(cells, shapes)
    return Table("Threads", "Time on the first number of threads over that on the second.", ["", *shapes], body)


def _clocks(result: dict) -> Table:
    """Of a GPU, from the least to the largest value that was read while a shape was measured."""

    def span(row: dict, field: str) -> str:
        return f"{row[f'{field}_min']:.0f} to {row[f'{field}_max']:.0f}" if f"{field}_min" in row else "not read"

    fields = {"sm_mhz": "SM, MHz", "memory_mhz": "memory, MHz", "power_w": "power, W", "temperature_c": "°C"}
    rows = [[row["shape"], *(span(row, field) for field in fields)] for row in result["clocks"]]
    return Table("Clocks", "As read while the shape was measured.", ["shape", *fields.values()], rows)


def _memory(result: dict) -> Table:
    """One line per candidate, in tensors of (batch, channels, length)."""
    shapes = list(dict.fromkeys(row["shape"] for row in result["memory"]))
    labels = {"ours": "selective scan", "s4d-scan": "S4D by scan", "s4d-fft": "S4D by FFT"}
    cells = (
        (labels[row["name"]], row["shape"], cell(row, lambda row: f"{row['tensors']:.2f}")) for row in result["memory"]
    )
    body = pivot(cells, shapes)
    caption = "Of forward and backward, above the inputs, in tensors of (batch, channels, length); in fresh processes."
    return Table("Peak memory", caption, ["", *shapes], body)


def pictures(result: dict) -> list[Picture]:
    """One for each sweep that has at least two sizes: time per element, a panel for each mode."""
    found = []
    for size, plural in SWEEPS.items():
        points = _swept(result, size)
        if len(points) < 2:
            continue
        sizes = result["settings"]["shapes"][points[0][1]]
        setting = ", ".join(f"{key} {sizes[key]:,}" for key in ("sequences", "length", "channels") if key != size)
        panels = tuple(
            Panel(f"{mode.capitalize()}, ns per element", setting, partial(_draw, result, size, mode)) for mode in MODES
        )
        legend = tuple((curve, curve.label, True) for curve in _curves(result, points))
        label = f"Time of the scan and its rivals per element against {plural}"
        found.append(Picture(f"scan-{size}", label, panels, legend))
    return found


def _rows_of(result: dict, points: list[tuple[int, str]]) -> list[dict]:
    """Of the candidates that a sweep shows."""
    names = [name for _, name in points]
    return [row for row in result["times"] if row["shape"] in names and _marked(result, row) in MARKS]


def _marked(result: dict, row: dict) -> str:
    base = result["settings"]["base"]
    return {base.replace("cuda", "triton"): "triton", base: "ours"}.get(row["name"], row["name"])


def _curves(result: dict, points: list[tuple[int, str]]) -> list[Curve]:
    labels = {_marked(result, row): row["label"] for row in _rows_of(result, points) if row["status"] == OK}
    return [Curve(name, labels[name], *MARKS[name]) for name in MARKS if name in labels]


def _draw(result: dict, size: str, mode: str, axes: Axes, theme: Theme) -> None:
    """Median and the band from the 10th to the 90th percentile."""
    points = _swept(result, size)
    value_of = {name: value for value, name in points}
    rows = [row for row in _rows_of(result, points) if row["mode"] == mode and row["status"] != NOT_APPLICABLE]
    drawn = [row | {"layer": _marked(result, row), size: value_of[row["shape"]]} for row in rows]
    curves(axes, theme, _curves(result, points), drawn, partial(_spread_of_nanoseconds, result), size, size, _short)


def _spread_of_nanoseconds(result: dict, row: dict) -> list[float]:
    scale = 1e9 / _shape(result["settings"]["shapes"][row["shape"]]).elements()
    return [scale * seconds for seconds in spread(row["seconds"]).values()]


def _short(value: int) -> str:
    """65536 -> 64k."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if value >= size and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def method(result: dict) -> str:
    settings, rates, is_cpu = result["settings"], result["rates"], result["settings"]["device"] == "cpu"
    rate, bandwidth = rates.get("exponentials_per_second"), rates.get("bytes_per_second")
    measured = [f"vector exp2 alone {rate / 1e9:.1f} G/s"] if rate else []
    measured += [f"the sum of two arrays into a third {bandwidth / 1e9:.1f} GB/s"] if bandwidth else []
    scalar = any(row["name"] == "compiled" and row["status"] == OK for row in result["times"]) and is_cpu
    threads = f", {settings['threads'][-1]} threads" if is_cpu else ""
    launch = "" if is_cpu else (
        "A launch is the replay of a graph, between two events of the device, and has to write what the call returned. "
    )  # fmt: skip
    unit = "turns, in each of which short calls are repeated," if is_cpu else "launches"
    return (
        f"Two directions, {settings['states']} states{threads}. Every shape in a process of its own; candidates take "
        f"turns with ours there, up to {settings['launches']} {unit} and {settings['budget_seconds']:g} s each, "
        "after a gate at a few sequences of the timed buffers against float64: the output, our gradients of these "
        "sequences, and every gradient of a call on all sequences with an output gradient that is zero elsewhere. "
        f"{launch}Caches are {settings['caches']}{_of_memory(settings) if is_cpu else ''}. Both directions of a rival "
        "are run one after the other, with flips between, as the published layer does. "
        + ("torch.compile makes scalar code: its vector code for this loop over time is wrong. " if scalar else "")
        + (f"Floors are of rates measured in the same run: {' and '.join(measured)}." if measured else "")
        + ("" if is_cpu else "Floors are modelled at the clock that was read meanwhile.")
    )


def _of_memory(settings: dict) -> str:
    if settings["keeps_freed_memory"]:
        return ", freed memory stays with the process, in large pages"
    return ", torch's allocator hands large blocks back to the system, which clears new pages for each call"


def _memory_bytes(row: dict) -> list[float]:
    return [row["peak_bytes"]] if "peak_bytes" in row else []


KIND = Kind(
    name="scan",
    title="The bidirectional selective scan",
    check=check,
    tables=tables,
    pictures=pictures,
    measures=(
        Measure("times", ("shape", "name", "mode"), "time", lambda row: row["seconds"], "s", "lower", TIME_DRIFT),
        Measure(
            "threads", ("shape", "mode", "threads"), "speed-up", lambda row: row["speedup"], "1", "higher", TIME_DRIFT
        ),
        Measure("memory", ("shape", "name"), "peak memory", _memory_bytes, "bytes", "lower", PEAK_DRIFT),
    ),
    method=method,
)

"""How results of the layer benchmark are shown."""

from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks.layers.candidates import WIDTHS, Candidate, candidate_named
from benchmarks.report.files import spread
from benchmarks.report.kinds import OK, PEAK_DRIFT, TIME_DRIFT, Kind, Measure, cell
from benchmarks.report.pictures import Panel, Picture
from ssmvdm.process_memory import MIB
from ssmvdm.report.plots import curves
from ssmvdm.report.tables import Table

KEYS = ("place", "frames", "layer", "mode")
STEP = {"inference": "inference", "training": "a training step"}


def check(result: dict) -> None:
    """Raises whatever comes first when a part that is drawn or tabulated is missing."""
    for row in result["layers"]:
        if row["layer"] not in result["settings"]["layers"] or row["mode"] not in STEP or row["frames"] < 1:
            raise ValueError(f"row of {row['layer']!r}, {row['mode']!r}, {row['frames']!r}")
    _ = tables(result), pictures(result), method(result)


def tables(result: dict) -> list[Table]:
    """Layers down, shapes across."""
    base = candidate_named(result["settings"]["base"]).label
    grids = (
        ("Time of {}, ms", "Median of the calls, 10th to 90th percentile.", _milliseconds),
        (f"Time of {{}} over that of {base}", "Median of the ratios of a turn; above 1 is slower.", _ratio),
        ("Frames per second of {}", "Of a clip, over the median time of a call.", _throughput),
        ("Peak memory of {}, MiB", "Above the input and the weights; what is returned is part of it.", _peak),
        ("Saved for backward, MiB", "Exact: every storage that autograd keeps, once, without the weights.", _saved),
    )
    modes = {"Saved for backward, MiB": ("training",)}
    return [
        _grid(result, title.format(STEP[mode]), caption, mode, shown)
        for title, caption, shown in grids for mode in modes.get(title, ("training", "inference"))
    ]  # fmt: skip


def _grid(result: dict, title: str, caption: str, mode: str, shown: Callable[[dict], str]) -> Table:
    rows = {(row["layer"], row["place"], row["frames"]): row for row in result["layers"] if row["mode"] == mode}
    shapes = result["settings"]["shapes"]
    header = ["layer", *(f"{x['channels']}×{x['side']}×{x['side']}, {x['frames']} frames" for x in shapes)]
    body = []
    for name in result["settings"]["layers"]:
        own = (rows.get((name, shape["place"], shape["frames"])) for shape in shapes)
        body.append([candidate_named(name).label, *(cell(row, shown) for row in own)])
    return Table(title, caption, header, body)


def _milliseconds(row: dict) -> str:
    values = {name: _number(1e3 * seconds) for name, seconds in spread(row["seconds"]).items()}
    return f"{values['median']} ({values['p10']}–{values['p90']})"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(row: dict) -> str:
    return f"{median(row['ratios']):.2f}" if row.get("ratios") else "–"


def _throughput(row: dict) -> str:
    return f"{frames_per_second(row)[0]:,.0f}"


def frames_per_second(row: dict) -> list[float]:
    return [row["frames"] / median(row["seconds"])]


def _peak(row: dict) -> str:
    return f"{median(row['peak_bytes']) / MIB:,.1f}"


def _saved(row: dict) -> str:
    return f"{row['saved_bytes'] / MIB:,.1f}"


# -- pictures ----------------------------------------------------------------------------------------------------------


def pictures(result: dict) -> list[Picture]:
    """Time and memory against frames at the level where most numbers of frames were measured."""
    shapes = result["settings"]["shapes"]
    places = [shape["place"] for shape in shapes]
    place = max(dict.fromkeys(places), key=places.count)
    size = next(shape for shape in shapes if shape["place"] == place)
    rows = [row for row in result["layers"] if row["place"] == place]
    setting = f"{place}: {size['channels']} channels, {size['side']}×{size['side']}, batch 1"
    layers = [candidate_named(name) for name in result["settings"]["layers"]]
    panels = (
        _panel("Training step, ms", setting, layers, rows, "training", _in_ms),
        _panel("Inference, ms", setting, layers, rows, "inference", _in_ms),
        _panel("Peak memory of a training step, MiB", setting, layers, rows, "training", _in_mib),
    )
    legend = tuple((layer, layer.label, not layer.is_published) for layer in layers)
    return [Picture("layers", "Time and peak memory of temporal layers against frames", panels, legend)]


def _panel(title: str, setting: str, layers: list[Candidate], rows: list[dict], mode: str, values) -> Panel:
    """Of the rows that have numbers: why others have none is in the tables."""
    good = [row for row in rows if row["mode"] == mode and row["status"] == OK]
    dashed = [layer.name for layer in layers if layer.is_published]
    return Panel(title, setting, partial(curves, layers=layers, rows=good, values=values, dashed=dashed))


def _in_ms(row: dict) -> list[float]:
    return [1e3 * seconds for seconds in spread(row["seconds"]).values()]


def _in_mib(row: dict) -> list[float]:
    return [peak / MIB for peak in row["peak_bytes"]]


def method(result: dict) -> str:
    settings = result["settings"]
    unit = "turns, in each of which short calls are repeated," if settings["device"] == "cpu" else "launches in turns"
    return (
        f"{', '.join(map(str, WIDTHS))} channels are levels 1 to {len(WIDTHS)} of the paper’s U-Net, batch 1. "
        "Every layer at a shape is given the same buffers, and layers that compute the same function the same weights. "
        f"Times are of up to {settings['launches']} {unit} in one process, with {settings['caches']} caches, "
        f"as many as {settings['budget_seconds']:g} s allow; a layer of which three calls take "
        "longer is not timed. A training step is forward and backward with the gradients of the input and of every "
        "weight, without an optimizer. Peak memory is of a process of its own. The gate: output of both modes and "
        "gradient of the input of the timed calls at two pixels, and gradients of the weights in a call on all pixels "
        "with an output gradient that is zero but at these two, against an independent float64 computation: at most "
        "twice the error of the same mathematics eagerly in float32, plus 32 units of rounding. “As published” is the "
        "authors’ way with our weights: sequences copied out of the video, flips around the reverse direction, S4D by "
        "FFT, S6 by the loop that mamba-ssm falls back to without its CUDA kernels. Attention by einsum is as "
        "published too."
    )


MEASURES = (
    Measure("layers", KEYS, "seconds", lambda row: row["seconds"], "s", "lower", TIME_DRIFT),
    Measure("layers", KEYS, "ratio", lambda row: row.get("ratios", []), "1", "lower", TIME_DRIFT),
    Measure("layers", KEYS, "peak_bytes", lambda row: row["peak_bytes"], "bytes", "lower", PEAK_DRIFT),
    Measure("layers", KEYS, "saved_bytes", lambda row: [row["saved_bytes"]] if "saved_bytes" in row else [], "bytes",
            "lower", 0.0),
)  # fmt: skip
KIND = Kind("layers", "Temporal layers at the shapes of the U-Net", check, tables, pictures, MEASURES, method)

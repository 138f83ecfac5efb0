"""The panels of the report: learning curves, what came out of them, and what a step costs. Each in light and dark."""

import io
from collections.abc import Callable, Iterable
from statistics import mean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from ssmvdm.compared import Layer, layer_named
from ssmvdm.process_memory import MIB
from ssmvdm.report.plots import STYLE, Theme
from ssmvdm.reproduce.study import REFERENCE

Panel = Callable[[Axes, dict, Theme], None]
DASHES = {"": "-", "mlp": "--", "glu": "-.", "glu-mlp": (0, (5, 1, 1, 1, 1, 1)), "gss": ":"}  # of lines, by mixer


def panel_svgs(result: dict, theme: Theme, panels: Iterable[Panel]) -> list[str]:
    """Every panel as an SVG of its own, without legend, for a page that arranges them itself."""
    return [panel_svg(result, theme, draw) for draw in panels]


def panel_svg(result: dict, theme: Theme, draw: Panel) -> str:
    """One panel. draw(axes, result, theme) puts the data into the axes and gives them title and labels."""
    colors = dict.fromkeys(("axes.titlecolor", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink)
    with matplotlib.rc_context(STYLE | colors):
        figure = Figure(figsize=(4.6, 3.4), facecolor=theme.ground)
        axes = figure.subplots()
        axes.set_facecolor(theme.ground)
        draw(axes, result, theme)
        axes.tick_params(which="both", labelsize=9)
        axes.grid(axis="y", which="major", color=theme.faint, alpha=0.28, lw=0.8)
        for spine in axes.spines.values():
            spine.set_color(theme.faint)
        figure.subplots_adjust(left=0.14, right=0.97, top=0.90, bottom=0.16)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def draw_relative_loss(axes: Axes, result: dict, theme: Theme) -> None:
    """Over that of the reference with the same seed, which saw the same clips and noise: most of what makes a single
    loss noisy cancels. Both are averaged over a tenth of the run first."""
    reference = _smooth(_curves(result, REFERENCE))
    for layer in _layers(result):
        ratio = _smooth(_curves(result, layer.name))[..., 1] / reference[..., 1]
        _draw_band(axes, reference[0, :, 0], ratio, layer, theme)
    _title(axes, f"Training loss over that of {REFERENCE}", "optimiser steps")


def _smooth(curves: np.ndarray) -> np.ndarray:
    """Moving averages of (seeds, points, 2) over a tenth of the points."""
    window = max(1, curves.shape[1] // 10)
    return np.lib.stride_tricks.sliding_window_view(curves, window, axis=1).mean(-1)


def draw_single_loss(axes: Axes, result: dict, theme: Theme) -> None:
    """Of a result that is one run: {"curve"}."""
    steps, losses = np.array(result["curve"]).T
    axes.plot(steps, losses, color=layer_named("bi-s6").color[theme.index], lw=1.8)
    _log_axis(axes, "y")
    _title(axes, "Training loss", "optimiser steps")


def draw_loss_by_time(axes: Axes, result: dict, theme: Theme) -> None:
    frames = result["study"]["frames"]
    seconds = {row["layer"]: row["step_seconds"] for row in result["costs"] if row["frames"] == frames}
    for layer in _layers(result):
        curves = _curves(result, layer.name)
        _draw_band(axes, curves[0, :, 0] * seconds[layer.name], curves[..., 1], layer, theme)
    _log_axis(axes, "y")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    _title(axes, "Training loss against time", "seconds of optimiser steps")


def _curves(result: dict, name: str) -> np.ndarray:
    """(seeds, points, 2): step and loss."""
    return np.array([row["curve"] for row in result["training"] if row["layer"] == name])


def _draw_band(axes: Axes, places: np.ndarray, values: np.ndarray, layer: Layer, theme: Theme) -> None:
    """values (seeds, places): their mean as a line, from the least to the largest as a band."""
    color = layer.color[theme.index]
    width = 2.2 if layer.name == REFERENCE else 1.4
    axes.plot(places, values.mean(0), ls=_dashes(layer), color=color, lw=width, zorder=3)
    axes.fill_between(places, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)


def draw_held_out(axes: Axes, result: dict, theme: Theme) -> None:
    values = {layer.name: [row["held_out"]["all"] for row in rows] for layer, rows in _runs(result)}
    _draw_dots(axes, result, theme, values)
    _title(axes, "Held-out denoising loss", "")


def draw_frechet(axes: Axes, result: dict, theme: Theme) -> None:
    values: dict[str, list[float]] = {}
    for row in result["frechet"]["rows"]:
        values.setdefault(row["layer"], []).append(row["distance"])
    _draw_dots(axes, result, theme, values)
    axes.axhline(result["frechet"]["floor"], color=theme.faint, lw=1.2, ls="--")
    axes.annotate("as many real clips", (0.01, result["frechet"]["floor"]), xycoords=("axes fraction", "data"),
                  xytext=(0, 3), textcoords="offset points", color=theme.faint, fontsize=8)  # fmt: skip
    axes.set_ylim(bottom=0)
    _title(axes, "Frechet distance (offline features)", "")


def _draw_dots(axes: Axes, result: dict, theme: Theme, values: dict[str, list[float]]) -> None:
    """A mark per seed, a line at their mean."""
    layers = _layers(result)
    for place, layer in enumerate(layers):
        color, seeds = layer.color[theme.index], values[layer.name]
        spread = np.linspace(-0.15, 0.15, len(seeds)) if len(seeds) > 1 else [0.0]
        axes.plot(place + np.array(spread), seeds, layer.marker, color=color, ms=6, zorder=3)
        axes.hlines(mean(seeds), place - 0.3, place + 0.3, color=color, lw=2)
    names = [layer.name.removesuffix("-sdpa").replace("-attention", "\nattention") for layer in layers]
    axes.set_xticks(range(len(layers)), [name.replace("/", "\n") for name in names])
    axes.set_xlim(-0.6, len(layers) - 0.4)


def draw_memory(axes: Axes, result: dict, theme: Theme) -> None:
    _draw_costs(axes, result, theme, lambda row: row["saved_bytes"] / MIB)
    _title(axes, "Kept for backward, MiB", "frames")


def draw_time(axes: Axes, result: dict, theme: Theme) -> None:
    _draw_costs(axes, result, theme, lambda row: row["step_seconds"])
    _title(axes, "Time of a training step, s", "frames")


def _draw_costs(axes: Axes, result: dict, theme: Theme, value: Callable[[dict], float]) -> None:
    frames = result["study"]["cost_frames"]
    for layer in _layers(result):
        rows = sorted((row for row in result["costs"] if row["layer"] == layer.name), key=lambda row: row["frames"])
        points = [row["frames"] for row in rows], [value(row) for row in rows]
        axes.plot(*points, layer.marker, ls=_dashes(layer), color=layer.color[theme.index], lw=1.6, ms=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(frames, [str(count) for count in frames])
    axes.xaxis.set_minor_locator(NullLocator())
    _log_axis(axes, "y")


def draw_loss_by_memory(axes: Axes, result: dict, theme: Theme) -> None:
    _draw_by_memory(axes, result, theme, "held-out loss")
    _title(axes, "Held-out denoising loss", "MiB kept for backward")


def draw_frechet_by_memory(axes: Axes, result: dict, theme: Theme) -> None:
    _draw_by_memory(axes, result, theme, "Frechet distance")
    axes.set_ylim(bottom=0)
    _title(axes, "Frechet distance (offline features)", "MiB kept for backward")


def _draw_by_memory(axes: Axes, result: dict, theme: Theme, quantity: str) -> None:
    """Of a result over widths: {"rows"}."""
    for layer in _layers(result):
        rows = [row for row in result["rows"] if row["layer"] == layer.name]
        values = np.array([row["values"][quantity] for row in rows]).T
        places = np.array([row["saved_bytes"] / MIB for row in rows])
        _draw_band(axes, places, values, layer, theme)
        axes.plot(places, values.mean(0), layer.marker, color=layer.color[theme.index], ms=5, zorder=3)
    _log_axis(axes, "x")


PANELS = (draw_relative_loss, draw_loss_by_time, draw_held_out, draw_frechet, draw_memory, draw_time)
EQUAL_MEMORY_PANELS = (draw_loss_by_memory, draw_frechet_by_memory)


def _layers(result: dict) -> list[Layer]:
    return [layer_named(name) for name in result["study"]["contenders"]]


def _dashes(layer: Layer):
    return DASHES[layer.name.partition("/")[2]]


def _runs(result: dict) -> list[tuple[Layer, list[dict]]]:
    return [(layer, [row for row in result["training"] if row["layer"] == layer.name]) for layer in _layers(result)]


def _title(axes: Axes, title: str, horizontal: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(horizontal)


_plain = FuncFormatter(lambda value, _: f"{value:g}")


def _log_axis(axes: Axes, which: str) -> None:
    """Logarithmic, with plain numbers; those between decades too where there are few decades."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    low, high = axis.get_view_interval()
    axis.set_major_formatter(_plain)
    few = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.set_minor_formatter(few if high / low < 100 else NullFormatter())

"""The figure of a memory benchmark: peak memory, time and saved bytes against frames, every layer, light and dark."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg", force=False)

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks.measure.environment import one_line
from benchmarks.shapes import GIB, PUBLISHED, Published, layer_named

STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: selectable, and in the reader's own font
    "svg.hashsalt": "ssmvdm",  # the same figure gives the same file
}


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance; index picks a layer's colour for it."""

    name: str
    index: int
    ground: str
    ink: str
    faint: str


THEMES = (Theme("light", 0, "#ffffff", "#1c2330", "#8a93a3"), Theme("dark", 1, "#12161d", "#e8ecf2", "#7d8798"))


@dataclass(frozen=True)
class Panel:
    """One set of axes: what it shows of which rows of a result, and under which setting."""

    title: str
    setting: str
    rows: list[dict]
    values: Callable[[dict], list[float]]
    has_published: bool = False


def panels_of(result: dict) -> list[Panel]:
    """Memory and time; bytes saved at the paper's setting too if they were counted."""
    network = result["settings"]["network"]
    setting = f"U-Net of base width {network['base_channels']}, {network['size']}×{network['size']}, batch 1"
    panels = [
        Panel("Peak memory of a training step, GiB", setting, result["training"], _peak_gib),
        Panel("Time of a training step, s", setting, result["training"], lambda row: row["step_seconds"]),
    ]
    if result["saved"]:
        setting = "the paper's setting: base width 112, 32×32, batch 1"
        panels.append(Panel("Saved for backward, GiB", setting, result["saved"], _saved_gib, has_published=True))
    return panels


def _peak_gib(row: dict) -> list[float]:
    return [peak / GIB for peak in row["peak_bytes"]]


def _saved_gib(row: dict) -> list[float]:
    return [row["saved_bytes"] / GIB]


def save_all(result: dict, folder: Path, stem: str) -> None:
    """Write <stem>-<theme>.svg and .png into `folder`: all panels, legend and provenance in one figure."""
    for theme in THEMES:
        with matplotlib.rc_context(STYLE):
            figure = draw(result, theme)
            figure.savefig(folder / f"{stem}-{theme.name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{stem}-{theme.name}.png", dpi=150, metadata={"Software": None})


def panel_svgs(result: dict, theme: Theme) -> list[str]:
    """Every panel as an SVG of its own, without legend, for a page that arranges them itself."""
    svgs = []
    for panel in panels_of(result):
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.6, 3.7), facecolor=theme.ground)
            _draw_panel(figure.subplots(), theme, panel, result["settings"])
            figure.subplots_adjust(left=0.11, right=0.97, top=0.84, bottom=0.14)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        svgs.append(buffer.getvalue())
    return svgs


def draw(result: dict, theme: Theme) -> Figure:
    """The whole figure."""
    panels = panels_of(result)
    figure = Figure(figsize=(4.6 * len(panels), 4.9), facecolor=theme.ground)
    all_axes = figure.subplots(1, len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, theme, panel, result["settings"])
    handles, labels = all_axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.055), ncols=len(panels) + 1, frameon=False,
        labelcolor=theme.ink, handlelength=1.8, columnspacing=1.6,
    )  # fmt: skip
    figure.text(0.5, 0.02, one_line(result["environment"]), ha="center", color=theme.faint, fontsize=8)
    figure.subplots_adjust(left=0.05, right=0.985, top=0.86, bottom=0.30, wspace=0.18)
    return figure


def _draw_panel(axes: Axes, theme: Theme, panel: Panel, settings: dict) -> None:
    axes.set_facecolor(theme.ground)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    failures = []
    for layer in map(layer_named, settings["layers"]):
        rows = sorted((row for row in panel.rows if row["layer"] == layer.name), key=lambda row: row["frames"])
        good = [(row["frames"], panel.values(row)) for row in rows if row["status"] == "ok"]
        failures += [(row["frames"], layer, row["status"]) for row in rows if row["status"] != "ok"]
        color, frames = layer.color[theme.index], [frame for frame, _ in good]
        width = 2.4 if layer.name == "bi-s6" else 1.6
        middles = [median(values) for _, values in good]
        axes.plot(frames, middles, layer.marker + "-", color=color, label=layer.label, lw=width, ms=6, zorder=3)
        lows, highs = [min(values) for _, values in good], [max(values) for _, values in good]
        axes.fill_between(frames, lows, highs, color=color, alpha=0.22, lw=0)
    if panel.has_published:
        _published(axes, theme, settings)
    _mark_failures(axes, theme, failures)
    _decorate(axes, theme, panel, settings["frames"])


def _mark_failures(axes: Axes, theme: Theme, failures: list) -> None:
    """What has no number is a cross at the upper edge, with the reason."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.07 * len(failures)))  # room above the curves
    for place, (frames, layer, status) in enumerate(failures):
        color = layer.color[theme.index]
        height = 0.985 - 0.055 * place
        upper_edge = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot([frames], [height], "x", color=color, ms=8, mew=2.2, **upper_edge)
        axes.annotate(status, (frames, height), xycoords=axes.get_xaxis_transform(), xytext=(-9, 0),
                      textcoords="offset points", ha="right", va="center", color=color, fontsize=8)  # fmt: skip


def _published(axes: Axes, theme: Theme, settings: dict) -> None:
    """The authors' own code, as hollow marks."""
    for published in published_in(settings):
        layer = layer_named(published.layer)
        points = {f: gib for f, gib in published.saved_gib.items() if f in settings["frames"]}
        hollow = {"mfc": "none", "mec": layer.color[theme.index], "mew": 1.4, "ms": 11, "ls": "none", "zorder": 2}
        axes.plot(list(points), list(points.values()), marker=layer.marker, label=published.label, **hollow)


def published_in(settings: dict) -> list[Published]:
    """Those published figures that belong to a layer and a number of frames of the run."""
    return [p for p in PUBLISHED if p.layer in settings["layers"] and set(p.saved_gib) & set(settings["frames"])]


def _decorate(axes: Axes, theme: Theme, panel: Panel, frames: list[int]) -> None:
    axes.set_title(panel.title, loc="left", color=theme.ink, fontweight="bold", pad=20)
    axes.text(0, 1.025, panel.setting, transform=axes.transAxes, color=theme.faint, fontsize=8.5)
    axes.set_xlabel("frames", color=theme.ink)
    axes.set_xticks(frames, [str(frame) for frame in frames])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    if high / low < 30:  # too few decades for their labels alone
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    axes.grid(axis="y", which="major", color=theme.faint, alpha=0.28, lw=0.8)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)

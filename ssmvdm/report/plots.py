"""How figures look, light and dark, and the curves of layers that most of them show."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from ssmvdm.compared import Published, layer_named

STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: selectable, and in the reader's own font
    "svg.hashsalt": "ssmvdm",  # the same figure gives the same file
}
EMPHASISED = ("bi-s6", "ours")
FEW_DECADES = 200.0  # least to largest value of an axis that has room for more labels than the decades


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance; index picks a layer's colour for it."""

    name: str
    index: int
    ground: str
    ink: str
    faint: str


THEMES = (Theme("light", 0, "#ffffff", "#1c2330", "#8a93a3"), Theme("dark", 1, "#12161d", "#e8ecf2", "#7d8798"))


class Mark(Protocol):
    """What tells a curve from others: color on light and on dark ground, matplotlib's marker (one of `page.MARKS`)."""

    @property
    def color(self) -> tuple[str, str]: ...

    @property
    def marker(self) -> str: ...


class Curve(Mark, Protocol):
    """What is drawn as one curve."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...


def curves(
    axes: Axes,
    theme: Theme,
    layers: Sequence[Curve],
    rows: Sequence[dict],
    values: Callable[[dict], list[float]],
    x: str = "frames",
    label: str = "frames",
    tick: Callable[[int], str] = str,
    dashed: Collection[str] = (),
) -> None:
    """The median of values(row) against row[x] for each layer (row["layer"] is its name), both axes logarithmic, with a
    band from the least to the largest. Rows without numbers are crosses at the upper edge. label: of the axis of x;
    tick: how a value of x is written there; dashed: names of the layers that have a broken line and hollow marks."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    failures = []
    for layer in layers:
        own = sorted((row for row in rows if row["layer"] == layer.name), key=lambda row: row[x])
        good = [(row[x], values(row)) for row in own if row["status"] == "ok"]
        failures += [(row[x], layer, row["status"]) for row in own if row["status"] != "ok"]
        color, places = layer.color[theme.index], [place for place, _ in good]
        width = 2.4 if layer.name in EMPHASISED else 1.6
        middles = [median(of_row) for _, of_row in good]
        line, inside = ("--", theme.ground) if layer.name in dashed else ("-", color)
        axes.plot(places, middles, marker=layer.marker, color=color, ls=line, mfc=inside,
                  label=layer.label, lw=width, ms=6, zorder=3)  # fmt: skip
        lows, highs = [min(of_row) for _, of_row in good], [max(of_row) for _, of_row in good]
        axes.fill_between(places, lows, highs, color=color, alpha=0.22, lw=0)
    _mark_failures(axes, theme, failures)
    ticks = sorted({row[x] for row in rows})
    axes.set_xlabel(label)
    axes.set_xticks(ticks, [tick(value) for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    label_few_decades(axes)


def authors_marks(
    draw: Callable[[Axes, Theme], None], published: Sequence[Published], frames: Sequence[int]
) -> Callable[[Axes, Theme], None]:
    """`draw`, and what the authors' own code saves for backward as hollow marks."""

    def both(axes: Axes, theme: Theme) -> None:
        for figures in published:
            layer = layer_named(figures.layer)
            points = {count: gib for count, gib in figures.saved_gib.items() if count in frames}
            hollow = {"mfc": "none", "mec": layer.color[theme.index], "mew": 1.4, "ms": 11, "ls": "none", "zorder": 2}
            axes.plot(list(points), list(points.values()), marker=layer.marker, label=figures.label, **hollow)
        draw(axes, theme)  # last, because it settles the limits of the axes

    return both


def label_few_decades(axes: Axes) -> None:
    """Plain numbers on a logarithmic axis of y; 2 and 5 too where the decades alone would be too few."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    if high / low < FEW_DECADES:
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_failures(axes: Axes, theme: Theme, failures: list) -> None:
    """What has no number is a cross at the upper edge, with the reason."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.07 * len(failures)))  # room above the curves
    for place, (x, layer, status) in enumerate(failures):
        color = layer.color[theme.index]
        height = 0.985 - 0.055 * place
        upper_edge = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot([x], [height], "x", color=color, ms=8, mew=2.2, **upper_edge)
        axes.annotate(status, (x, height), xycoords=axes.get_xaxis_transform(), xytext=(-9, 0),
                      textcoords="offset points", ha="right", va="center", color=color, fontsize=8)  # fmt: skip

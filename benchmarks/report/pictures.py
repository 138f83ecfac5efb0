"""Panels side by side as one figure in a file, and one by one on a page, which arranges them as there is room."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg", force=False)

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssmvdm.report.environment import one_line
from ssmvdm.report.plots import STYLE, THEMES, Mark, Theme


@dataclass(frozen=True)
class Panel:
    """One set of axes. setting: below the title, under which setting; draw: puts everything else there, labelled
    artists for the legend too."""

    title: str
    setting: str
    draw: Callable[[Axes, Theme], None]


@dataclass(frozen=True)
class Picture:
    """stem: of its files; label: for those who cannot see it; legend: (mark, label, whether it is filled) of what the
    panels together show."""

    stem: str
    label: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[Mark, str, bool], ...]


def save(picture: Picture, environment: dict, folder: Path) -> None:
    """<stem>-<theme>.svg and .png."""
    for theme in THEMES:
        with matplotlib.rc_context(STYLE):
            figure = whole(picture, environment, theme)
            figure.savefig(folder / f"{picture.stem}-{theme.name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{picture.stem}-{theme.name}.png", dpi=150, metadata={"Software": None})


def panel_svgs(picture: Picture, theme: Theme) -> list[str]:
    """Every panel as an SVG of its own, without a legend."""
    svgs = []
    for panel in picture.panels:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.6, 3.7), facecolor=theme.ground)
            _draw(figure.subplots(), panel, theme)
            figure.subplots_adjust(left=0.11, right=0.97, top=0.84, bottom=0.14)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        svgs.append(buffer.getvalue())
    return svgs


def whole(picture: Picture, environment: dict, theme: Theme) -> Figure:
    """All panels in a row, the legend below them, and where it was measured."""
    count = len(picture.panels)
    longest = max((len(label) for _, label, _ in picture.legend), default=0)
    columns = max(1, min(int(4.6 * count / (0.6 + 0.068 * longest)), len(picture.legend)))  # inches that a label takes
    legend_rows = -(-len(picture.legend) // columns)
    height = 4.2 + 0.2 * legend_rows
    figure = Figure(figsize=(4.6 * count, height), facecolor=theme.ground)
    all_axes = figure.subplots(1, count, squeeze=False)[0]
    labelled = {}
    for axes, panel in zip(all_axes, picture.panels, strict=True):
        _draw(axes, panel, theme)
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(
        labelled.values(), labelled.keys(), loc="lower center", bbox_to_anchor=(0.5, 0.27 / height), ncols=columns,
        frameon=False, labelcolor=theme.ink, handlelength=2.3, columnspacing=1.6,
    )  # fmt: skip
    figure.text(0.5, 0.1 / height, one_line(environment), ha="center", color=theme.faint, fontsize=8)
    bottom = (0.95 + 0.2 * legend_rows) / height
    figure.subplots_adjust(left=0.25 / count, right=1 - 0.05 / count, top=1 - 0.68 / height, bottom=bottom)
    return figure


def _draw(axes: Axes, panel: Panel, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    panel.draw(axes, theme)
    axes.set_title(panel.title, loc="left", color=theme.ink, fontweight="bold", pad=20)
    axes.text(0, 1.025, panel.setting, transform=axes.transAxes, color=theme.faint, fontsize=8.5)
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    axes.xaxis.label.set_color(theme.ink)
    axes.grid(axis="y", which="major", color=theme.faint, alpha=0.28, lw=0.8)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)

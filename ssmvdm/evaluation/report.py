"""An evaluation to files: JSON, a Markdown table, and the consistency curve in light and dark. All of them, or none."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ssmvdm.compared import layer_named
from ssmvdm.report.environment import one_line
from ssmvdm.report.files import all_or_none
from ssmvdm.report.plots import STYLE, THEMES, Theme

STEM, CURVE = "evaluation", "consistency"


def write_all(result: dict, folder: Path) -> Path:
    """Returns the path of the Markdown page."""
    with all_or_none(folder) as draft:
        (draft / f"{STEM}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (draft / f"{STEM}.md").write_text(as_markdown(result), encoding="utf-8")
        if result["runs"][0]["consistency"] is not None:
            for theme in THEMES:
                with matplotlib.rc_context(STYLE):
                    draw_consistency(result, theme).savefig(
                        draft / f"{CURVE}-{theme.name}.svg", metadata={"Date": None}
                    )
    return folder / f"{STEM}.md"


def as_markdown(result: dict) -> str:
    """The numbers in tables, the reservations first."""
    run, runs = result["runs"][0], result["runs"]
    stamp = run["stamp"]
    lines = [f"# {run['metric']}: {result['samples']} against {result['data']['name']}", ""]
    if stamp:
        lines += [f"**{stamp[0].upper()}{stamp[1:]}.** {OFFLINE_ADVICE}", ""]
    lines += _distance_table(runs, stamp)
    lines += ["", f"Seeds change {result['seeds_change']}. {FLOOR}", ""]
    lines += ["| frames, first seed | real | generated | Wasserstein distance |", "|---|--:|--:|--:|"]
    for name, row in run["frame_statistics"].items():
        lines.append(f"| {name} | {row['real']:.4f} | {row['fake']:.4f} | {row['wasserstein']:.4f} |")
    if run["consistency"] is not None:
        lines += ["", *_consistency_table(run["consistency"])]
    if result["paired"] is not None:
        lines += ["", *_paired_table(result["paired"])]
    lines += ["", one_line(result["environment"]), ""]
    return "\n".join(lines)


OFFLINE_ADVICE = (
    "The features were learnt on the data at hand: compare only with numbers of the same data and settings."
)
FLOOR = "The floor is the distance between the two halves of the real videos; distances fall as videos become more."


def _distance_table(runs: list[dict], stamp: str | None) -> list[str]:
    note = f" ({stamp})" if stamp else ""
    lines = [f"| {runs[0]['metric']}{note} | distance | floor | real | generated |", "|---|--:|--:|--:|--:|"]
    for seed, run in enumerate(runs):
        floor = "–" if run["floor"] is None else f"{run['floor']:.4g}"
        lines.append(f"| seed {seed} | {run['frechet_distance']:.4g} | {floor} | {run['real']} | {run['fake']} |")
    if len(runs) > 1:
        distances = [run["frechet_distance"] for run in runs]
        lines.append(f"| mean ± standard deviation | {mean(distances):.4g} ± {stdev(distances):.2g} | | | |")
    return lines


def _consistency_table(curve: dict) -> list[str]:
    """Lags that double, and the longest."""
    longest = curve["lag"][-1]
    lags = sorted({2**i for i in range(longest.bit_length())} | {longest})
    lines = ["| difference of frames k apart (root mean square) | real | generated |", "|---|--:|--:|"]
    lines += [f"| k = {lag} | {curve['real'][lag - 1]:.4f} | {curve['fake'][lag - 1]:.4f} |" for lag in lags]
    if curve["gap"] is not None:
        lines.append(f"| mean distance of the curves, over the mean of the real one | | {curve['gap']:.3f} |")
    return lines


def _paired_table(paired: dict) -> list[str]:
    lines = [f"| frame by frame against {paired['reference']} | |", "|---|--:|"]
    if paired["psnr"] is not None:
        lines.append(f"| PSNR of frames that differ | {paired['psnr']:.2f} dB |")
    lines.append(f"| frames that are equal | {paired['equal_frames']} |")
    if paired["ssim"] is not None:
        lines.append(f"| SSIM | {paired['ssim']:.4f} |")
    return lines


def draw_consistency(result: dict, theme: Theme) -> Figure:
    """Root mean square difference of frames against how far apart they are, real and generated, one standard deviation
    of videos as a band."""
    curve = result["runs"][0]["consistency"]
    figure = Figure(figsize=(5.6, 4.2), facecolor=theme.ground)
    axes = figure.subplots()
    axes.set_facecolor(theme.ground)
    lag = np.array(curve["lag"])
    generated = layer_named("bi-s6").color[theme.index]
    for name, label, color in (("real", "real", theme.ink), ("fake", "generated", generated)):
        middle, spread = np.array(curve[name]), np.array(curve[f"{name}_std"])
        axes.plot(lag, middle, "o-", color=color, label=label, ms=3.5, lw=1.8, zorder=3)
        axes.fill_between(lag, middle - spread, middle + spread, color=color, alpha=0.15, lw=0)
    axes.set_ylim(bottom=0.0)
    axes.set_title("Difference of frames k apart", loc="left", color=theme.ink, fontweight="bold", pad=20)
    axes.text(0, 1.025, "root mean square over pixels; band: one standard deviation over videos",
              transform=axes.transAxes, color=theme.faint, fontsize=8.5)  # fmt: skip
    axes.set_xlabel("k, frames", color=theme.ink)
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    axes.grid(axis="y", which="major", color=theme.faint, alpha=0.28, lw=0.8)
    axes.legend(frameon=False, labelcolor=theme.ink)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)
    figure.text(0.5, 0.02, one_line(result["environment"]), ha="center", color=theme.faint, fontsize=6.5)
    figure.subplots_adjust(left=0.11, right=0.97, top=0.86, bottom=0.18)
    return figure

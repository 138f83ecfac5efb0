"""A study as one self-contained HTML page."""

import base64
import html
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ssmvdm.compared import layer_named
from ssmvdm.data.export import write_gif
from ssmvdm.data.source import DataConfig, open_source
from ssmvdm.report.environment import busy_warning, one_line
from ssmvdm.report.page import environment_table, legend, table_section, themed_figure, whole_page
from ssmvdm.report.plots import THEMES
from ssmvdm.reproduce.held_out import held_out_videos
from ssmvdm.reproduce.plots import PANELS, panel_svgs
from ssmvdm.reproduce.tables import TITLE, in_words, labels_of, tables_of

SHOWN_SAMPLES = 6  # per layer
SHOWN_PIXELS = 96  # per sample, at least, enlarged


def page(result: dict, folder: Path) -> str:
    """The page. folder: where the study's samples are."""
    layers = [layer_named(name) for name in result["study"]["contenders"]]
    svgs = {theme.name: panel_svgs(result, theme, PANELS) for theme in THEMES}
    sections = [
        f"<p>{html.escape(in_words(result))}</p>",
        _verdicts(result),
        themed_figure(svgs, "Loss curves, held-out losses, Frechet distances, memory and time of every layer"),
        legend((layer, layer.label, True) for layer in layers),
        "<p>Lines are means over the seeds, bands reach from the least to the largest; marks are single seeds.</p>",
        _samples(result, folder),
        *map(table_section, tables_of(result)),
        environment_table(result["environment"], result["wall_seconds"]),
    ]
    return whole_page(TITLE, one_line(result["environment"]), sections)


def _verdicts(result: dict) -> str:
    parts = [
        answers(conclusion["question"], [finding["sentence"] for finding in conclusion["findings"]])
        for conclusion in result["conclusions"]
    ]
    parts.append(answers("What does it cost?", result["costs_in_words"]))
    return "".join([*parts, warning(result)])


def warning(result: dict) -> str:
    """That the machine had other work, if it had."""
    words = busy_warning(result["environment"])
    return f"<p class=bad>{html.escape(words)}</p>" if words else ""


def answers(question: str, sentences: Iterable[str]) -> str:
    told = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{html.escape(question)}</h2><ul>{told}</ul>"


def _samples(result: dict, folder: Path) -> str:
    """Real clips, then the first seed's samples of every layer; all layers started from the same noise."""
    study = result["study"]
    real = open_source(DataConfig("maze", study["frames"], study["network"]["size"]))
    rows = [("held-out clips", held_out_videos(real, SHOWN_SAMPLES))]
    labels = labels_of(result)
    for row in result["training"]:
        if row["seed"] == 0:
            rows.append((labels[row["layer"]], np.load(folder / row["samples"], allow_pickle=False)[:SHOWN_SAMPLES]))
    shown = "".join(f"<h3>{html.escape(label)}</h3>{moving(videos, label)}" for label, videos in rows)
    return f"<h2>Samples</h2>{shown}"


def moving(videos: np.ndarray, label: str) -> str:
    """Videos (n, 3, frames, size, size) side by side as a GIF inside the page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "videos.gif"
        write_gif(path, videos, scale=-(-SHOWN_PIXELS // videos.shape[-1]))
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    style = "max-width:100%;image-rendering:pixelated"
    return f'<img style="{style}" alt="{html.escape(label)}" src="data:image/gif;base64,{content}">'

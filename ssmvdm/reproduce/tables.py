"""A study's numbers as tables, for the page and as Markdown."""

from collections.abc import Iterable
from statistics import mean, stdev

from ssmvdm.compared import layer_named
from ssmvdm.process_memory import MIB
from ssmvdm.report.environment import busy_warning, one_line
from ssmvdm.report.tables import Table, markdown
from ssmvdm.reproduce.held_out import BANDS


def labels_of(result: dict) -> dict[str, str]:
    """Layer -> what people call it."""
    return {name: layer_named(name).label for name in result["study"]["contenders"]}


def tables_of(result: dict) -> list[Table]:
    study = result["study"]
    frames, size = study["frames"], study["network"]["size"]
    step = f"one training step on {study['batch']} clips of {size}×{size} pixels"
    clips = f"clips of {frames} frames of {size}×{size} pixels"
    return [
        _losses(result, f"Mean squared error of the predicted noise on {study['held_out']} held-out {clips}, "
                "averaged weights; thirds of the noise levels, mean ± standard deviation over "
                f"{study['seeds']} seeds."),
        _distances(result, f"{result['frechet']['name']}: {result['frechet']['stamp']}. {study['samples']} samples of "
                   f"{study['sample_steps']} DDPM steps against {study['real']} held-out {clips}; so many real clips "
                   f"have {result['frechet']['floor']:.3g}."),
        _costs(result, "Kept for backward, MiB", f"{step}; exact.", lambda row: f"{row['saved_bytes'] / MIB:.1f}"),
        _costs(result, "Time of a training step, s", f"{step}; median of {study['cost_repeats']}, "
               f"{_clock(result)}.", lambda row: f"{row['step_seconds']:.3f}"),
    ]  # fmt: skip


def _clock(result: dict) -> str:
    return "one thread of the processor" if result["device"] == "cpu" else "wall clock of the GPU"


def _losses(result: dict, caption: str) -> Table:
    rows = []
    for name, label in labels_of(result).items():
        runs = [row for row in result["training"] if row["layer"] == name]
        parameters = f"{runs[0]['parameters']:,}"
        cells = [spread([row["held_out"][band] for row in runs], 4) for band in ("all", *BANDS)]
        rows.append([label, parameters, *cells])
    head = ["temporal layer", "parameters", "all noise levels", *(f"{band} noise" for band in BANDS)]
    return Table("Held-out denoising loss", caption, head, rows)


def _distances(result: dict, caption: str) -> Table:
    rows = []
    for name, label in labels_of(result).items():
        distances = [row["distance"] for row in result["frechet"]["rows"] if row["layer"] == name]
        rows.append([label, spread(distances, 3), *(f"{distance:.3g}" for distance in distances)])
    head = ["temporal layer", "mean", *(f"seed {seed}" for seed in range(result["study"]["seeds"]))]
    return Table("Frechet distance of samples", caption, head, rows)


def _costs(result: dict, title: str, caption: str, cell) -> Table:
    by_place = {(row["layer"], row["frames"]): row for row in result["costs"]}
    frames = result["study"]["cost_frames"]
    rows = [[label, *(cell(by_place[name, count]) for count in frames)] for name, label in labels_of(result).items()]
    return Table(title, caption, ["temporal layer", *(f"{count} frames" for count in frames)], rows)


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation, or the value alone where there is one."""
    if len(values) < 2:
        return f"{values[0]:.{digits}g}"
    return f"{mean(values):.{digits}g} ± {stdev(values):.2g}"


def as_markdown(result: dict) -> str:
    """What the page says, without its pictures."""
    parts = [f"# {TITLE}\n\n{one_line(result['environment'])}\n\n{in_words(result)}\n"]
    for conclusion in result["conclusions"]:
        sentences = [finding["sentence"] for finding in conclusion["findings"]]
        parts.append(answers_markdown(conclusion["question"], sentences))
    parts.append(answers_markdown("What does it cost?", result["costs_in_words"]))
    if warning := busy_warning(result["environment"]):
        parts.append(f"{warning}\n")
    return "\n".join(parts + [markdown(table) for table in tables_of(result)])


def answers_markdown(question: str, sentences: Iterable[str]) -> str:
    return f"## {question}\n\n" + "".join(f"* {sentence}\n" for sentence in sentences)


def in_words(result: dict) -> str:
    """What was done, in a few sentences."""
    study = result["study"]
    network = study["network"]
    size = network["size"]
    return (
        f"Each layer in the same U-Net (base width {network['base_channels']}, widths times "
        f"{', '.join(map(str, network['channel_mults']))}), {chosen_sizes(study)}; "
        f"{study['steps']} optimiser steps of {study['batch']} maze walks of {study['frames']} frames of {size}×{size} "
        f"pixels, Adam at {study['learning_rate']:g}, {study['seeds']} seeds. The same seed gives every layer the same "
        "clips, noise and noise levels, so that results are compared in pairs. A difference counts when Student's 95 % "
        "interval of its mean over the seeds leaves out zero."
    )


def chosen_sizes(study: dict) -> str:
    mixed = any("/" in name for name in study["contenders"])
    kept = ", but for those with another mixer, which keep their sizes" if mixed else ""
    return f"sizes chosen so that all have as many parameters{kept}"


TITLE = "Temporal layers at equal parameters and equal steps"

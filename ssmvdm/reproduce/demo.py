"""From nothing to moving pictures in minutes: train a small network on maze walks, sample, show."""

import html
import json
from pathlib import Path

import numpy as np
import torch

from ssmvdm.checkpoint import load_model
from ssmvdm.data.export import write_gif
from ssmvdm.data.source import open_source
from ssmvdm.report.environment import describe, one_line
from ssmvdm.report.page import environment_table, themed_figure, whole_page
from ssmvdm.report.plots import THEMES
from ssmvdm.reproduce.held_out import BANDS, band_losses, held_out_videos
from ssmvdm.reproduce.jobs import device_of_study, loss_curve
from ssmvdm.reproduce.page import SHOWN_PIXELS, moving
from ssmvdm.reproduce.plots import draw_single_loss, panel_svg
from ssmvdm.reproduce.run import write
from ssmvdm.run_log import read_log
from ssmvdm.sampling import sample_videos
from ssmvdm.training import train
from ssmvdm.training_config import TrainingConfig

SAMPLES = 6
SAMPLE_STEPS = 64  # of DDPM, which forgives a short training more than DDIM does
HELD_OUT = 16


def demo(config: TrainingConfig, folder: Path) -> Path:
    """Train as `config` says, or go on with it, in folder/run; write samples.gif, loss.svg and report.html into
    `folder`; returns the report."""
    environment = describe(torch.get_num_threads())
    train(config, folder / "run")
    log = folder / "run" / "log.jsonl"
    trained_seconds = sum(record["seconds"] for record in read_log(log))
    model, _ = load_model(folder / "run")
    model = model.to(device_of_study())
    diffusion = config.diffusion.process()
    real = held_out_videos(open_source(config.data), HELD_OUT)
    losses = band_losses(model, diffusion, real, device_of_study(), config.batch)
    frames, size = config.data.frames, config.data.size
    drawn = {
        count: np.stack(list(sample_videos(model, diffusion, SAMPLES, count, size, steps=SAMPLE_STEPS)))
        for count in (frames, 2 * frames)
    }
    write_gif(folder / "samples.gif", drawn[frames], scale=-(-SHOWN_PIXELS // size))
    curve = {"curve": loss_curve(log, config.steps)}
    svgs = {theme.name: [panel_svg(curve, theme, draw_single_loss)] for theme in THEMES}
    write(folder / "loss.svg", svgs["light"][0])
    told = "; ".join(f"{band} noise {losses[band]:.4f}" for band in BANDS)
    sections = [
        f"<p>{html.escape(_in_words(config, trained_seconds))}</p>",
        f"<h2>Samples, {frames} frames</h2>{moving(drawn[frames], 'samples')}",
        f"<h2>Samples, {2 * frames} frames: twice as many as it was trained on</h2>{moving(drawn[2 * frames], 'long')}",
        f"<h2>Held-out clips</h2>{moving(real[:SAMPLES], 'held-out clips')}",
        themed_figure(svgs, "Training loss against optimiser steps"),
        f"<p>Mean squared error of the predicted noise on {HELD_OUT} held-out clips: {told}.</p>",
        f"<details><summary>Configuration</summary><pre>{html.escape(json.dumps(config.to_dict(), indent=1))}</pre>"
        "</details>",
        environment_table(environment, wall_seconds=None),  # of a run that was gone on with nobody knows it
    ]
    write(folder / "report.html", whole_page("A small bi-S6 on maze walks", one_line(environment), sections))
    return folder / "report.html"


def _in_words(config: TrainingConfig, seconds: float) -> str:
    data, layer = config.data, config.network.temporal.layer
    return (
        f"A U-Net of base width {config.network.base_channels} with temporal layer {layer}, trained for {config.steps} "
        f"steps of {config.batch} maze walks of {data.frames} frames of {data.size}×{data.size} pixels, in "
        f"{seconds:.0f} s. Samples are {SAMPLE_STEPS} DDPM steps with the averaged weights."
    )

"""Denoising loss on a fixed set of (clip, t, noise), the same for every network."""

import itertools

import numpy as np
import torch
from torch import Tensor

from ssmvdm.data.source import ClipSource
from ssmvdm.diffusion import Denoiser, GaussianDiffusion, to_model_range

BANDS = ("low", "middle", "high")  # thirds of t: little noise, some, hardly anything else


def held_out_videos(source: ClipSource, count: int) -> np.ndarray:
    """The first held-out clips, (count, 3, frames, size, size) in [0, 1]."""
    return np.stack([clip.video for clip in itertools.islice(source.held_out_clips(), count)])


@torch.no_grad()
def band_losses(model: Denoiser, diffusion: GaussianDiffusion, videos: np.ndarray, device, batch: int) -> dict:
    """Mean squared error of the predicted noise, by band and over all: {"low", "middle", "high", "all"}.

    Every video is seen at one t per band. t and noise depend on the video's number and the band alone.
    """
    losses: dict[str, list[float]] = {band: [] for band in BANDS}
    for start in range(0, len(videos), batch):
        x0 = to_model_range(torch.from_numpy(videos[start : start + batch]))
        for index, band in enumerate(BANDS):
            draws = [_draw(x0[i].shape, diffusion.timesteps, start + i, index) for i in range(len(x0))]
            t, noise = (torch.stack(part).to(device) for part in zip(*draws, strict=True))
            predicted = model(diffusion.q_sample(x0.to(device), t, noise), t)
            losses[band] += (predicted - noise).square().flatten(1).mean(1).tolist()
    means = {band: float(np.mean(values)) for band, values in losses.items()}
    return means | {"all": float(np.mean(list(means.values())))}


def _draw(shape: torch.Size, timesteps: int, video: int, band: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(BANDS) * video + band)
    edges = [timesteps * edge // len(BANDS) for edge in (band, band + 1)]
    return torch.randint(*edges, (), generator=generator), torch.randn(shape, generator=generator)

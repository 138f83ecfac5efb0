"""Features for a Frechet distance without any file: a small network trained on the data at hand.

It learns to say how much was done to a clip, and what (`DAMAGES`): it cannot without seeing both the pixels and their
order in time. What it computes just before the last, linear step are the features, so that they grow with the damage.
Their distances compare models that were judged by the same network, that is with the same clips, seed and settings, and
with nothing else: every number is stamped `NOT_COMPARABLE`.

Convolutions alternate between space and time ("R(2+1)D", Tran et al. 2018), and the last map is averaged, so that
clips of any length and size can be judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, mse_loss

from ssmvdm.digests import weights_digest
from ssmvdm.evaluation.features import NOT_COMPARABLE
from ssmvdm.evaluation.videos import batches

WIDTHS = (24, 48, 96)  # of the three levels; the last is the number of features
LARGEST = 64  # pixels: larger frames are shrunk to it
WINDOW = 32  # frames of a longer clip that one training example shows
LEARNING_RATE = 2e-3
NOISE = 0.4  # largest standard deviation
BLUR = 5  # pixels
FLICKER = 0.4  # largest relative change of a frame's brightness


class OfflineFeatures:
    """A FeatureExtractor; `train` makes one."""

    name = "Frechet distance (features learnt offline)"
    stamp = NOT_COMPARABLE

    def __init__(self, network: nn.Module, details: dict, device="cpu"):
        self.network, self.details, self.device = network.to(device).eval(), details, torch.device(device)
        self.identity = weights_digest(network)

    @classmethod
    def train(
        cls,
        clips: Iterable[np.ndarray],
        *,
        seed: int = 0,
        steps: int = 300,
        batch: int = 16,
        device="cpu",
        on_step: Callable[[int, float], None] | None = None,
    ) -> OfflineFeatures:
        """Learn from clips (3, frames, height, width) in [0, 1], all of one shape.

        The same clips, seed and settings give the same network on the same device with as many threads.
        on_step: called with the number of each step and its loss.
        ValueError for fewer than two clips, fewer than two frames, or frames smaller than 8 pixels.
        """
        pool = torch.from_numpy(np.concatenate([(255.0 * b + 0.5).astype(np.uint8) for b in batches(clips, batch)]))
        if len(pool) < 2 or pool.shape[2] < 2 or min(pool.shape[3:]) < 8:
            raise ValueError(
                "clips: expected at least 2 of at least 2 frames of 8 x 8 pixels, "
                f"got {len(pool)} of {pool.shape[2]} frames of {pool.shape[3]} x {pool.shape[4]}"
            )
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network().to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1)
        losses = []
        for step in range(steps):
            damaged, amounts = _examples(pool, batch, generator)
            loss = mse_loss(network(_scaled(damaged.to(device))), amounts.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if on_step is not None:
                on_step(step + 1, losses[-1])
        tail = losses[-max(steps // 10, 1) :]
        details = {"clips": len(pool), "seed": seed, "steps": steps, "batch": batch, "loss": sum(tail) / len(tail)}
        return cls(network, details, device)

    @torch.inference_mode()
    def features(self, videos: np.ndarray) -> np.ndarray:
        """(n, 96) of videos (n, 3, frames, height, width) in [0, 1]."""
        clips = (torch.from_numpy(np.array(video, np.float32))[None].to(self.device) for video in videos)
        return torch.cat([self.network.features(_scaled(clip)) for clip in clips]).double().cpu().numpy()


class _Network(nn.Module):
    """(b, 3, f, h, w) in [-1, 1] -> amounts of each damage (b, damages)."""

    def __init__(self):
        super().__init__()
        levels, width = [], 3
        for i, wider in enumerate(WIDTHS):
            edge = 5 if i == 0 else 3
            levels += [
                nn.Conv3d(width, wider, (1, edge, edge), (1, 2, 2), (0, edge // 2, edge // 2), bias=False),
                nn.BatchNorm3d(wider),
                nn.ReLU(),
                nn.Conv3d(wider, wider, (3, 1, 1), padding=(1, 0, 0), bias=False),
                nn.BatchNorm3d(wider),
                nn.ReLU(),
            ]
            width = wider
        self.levels = nn.Sequential(*levels)
        self.head = nn.Linear(width, len(DAMAGES))

    def features(self, x: Tensor) -> Tensor:
        return self.levels(x).mean(dim=(2, 3, 4))  # (b, WIDTHS[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _scaled(clips: Tensor) -> Tensor:
    """In [-1, 1], frames of at most LARGEST pixels."""
    height, width = clips.shape[3:]
    if max(height, width) > LARGEST:
        ratio = LARGEST / max(height, width)
        size = (clips.shape[2], max(round(height * ratio), 1), max(round(width * ratio), 1))
        clips = interpolate(clips, size=size, mode="area")
    return 2.0 * clips - 1.0


def _examples(pool: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(clips (count, 3, f, h, w) in [0, 1], amounts (count, damages)): windows of clips of the pool, one in
    len(DAMAGES) + 1 as it is, the others with one damage each."""
    frames = min(pool.shape[2], WINDOW)
    clips, amounts = [], torch.zeros(count, len(DAMAGES))
    for row in amounts:
        window = _draw(pool.shape[2] - frames + 1, generator)
        one, other = (pool[_draw(len(pool), generator), :, window : window + frames] / 255.0 for _ in range(2))
        kind = _draw(len(DAMAGES) + 1, generator)
        if kind < len(DAMAGES):
            row[kind] = torch.rand((), generator=generator)
            one = DAMAGES[kind](one, other, float(row[kind]), generator)
        clips.append(one)
    return torch.stack(clips), amounts


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _spared(clip: Tensor, amount: float) -> int:
    """How many frames, of at least one, stay as they are when this share of them is damaged."""
    frames = clip.shape[1]
    return min(max(round((1.0 - amount) * frames), 1), frames - 1)


def _shuffled(clip: Tensor, other: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """So many of its frames change places with each other."""
    order = torch.arange(clip.shape[1])
    chosen = torch.randperm(clip.shape[1], generator=generator)[_spared(clip, amount) - 1 :]  # two frames at least
    order[chosen.sort().values] = chosen
    return clip[:, order]


def _spliced(clip: Tensor, other: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """It goes on as another clip from some frame on."""
    cut = _spared(clip, amount)
    return torch.cat([clip[:, :cut], other[:, cut:]], dim=1)


def _frozen(clip: Tensor, other: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """It stands still from some frame on."""
    cut = _spared(clip, amount)
    return torch.cat([clip[:, :cut], clip[:, cut - 1 : cut].expand(-1, clip.shape[1] - cut, -1, -1)], dim=1)


def _flickering(clip: Tensor, other: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    gain = 1.0 + FLICKER * amount * (2.0 * torch.rand(1, clip.shape[1], 1, 1, generator=generator) - 1.0)
    return (clip * gain).clamp(0.0, 1.0)


def _noisy(clip: Tensor, other: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(clip.shape, generator=generator)
    return (clip + NOISE * amount**2 * noise).clamp(0.0, 1.0)  # squared: light noise is what samples have


def _blurred(clip: Tensor, other: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    soft = avg_pool2d(clip, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)
    return torch.lerp(clip, soft, amount)


DAMAGES = (_shuffled, _spliced, _frozen, _flickering, _noisy, _blurred)

"""Discs and squares that drift and bounce in a box: the smallest data set on which motion can be learnt."""

import numpy as np

from ssmvdm.data.checks import check_clip_arguments

SHAPES = 3  # per clip
RADIUS = (0.10, 0.20)  # of the image's edge
SPEED = (0.01, 0.04)  # of the image's edge, per frame


def clips(seed: int, batch: int, frames: int, size: int) -> np.ndarray:
    """`batch` clips (batch, 3, frames, size, size) float32 in [0, 1]; clip i depends on (seed, i) only.

    ValueError for a negative seed or a count below one.
    """
    check_clip_arguments(seed, frames, size, batch)
    return np.stack([clip((seed, i), frames, size) for i in range(batch)])


def clip(seed: tuple[int, ...], frames: int, size: int) -> np.ndarray:
    """One clip (3, frames, size, size), a function of its seed."""
    rng = np.random.default_rng(seed)
    video = np.empty((3, frames, size, size), np.float32)
    video[:] = rng.uniform(0.05, 0.30, size=(3, 1, 1, 1))
    pixel = (np.arange(size) + 0.5) / size
    for _ in range(SHAPES):
        radius = rng.uniform(*RADIUS)
        colour = rng.uniform(0.35, 1.0, size=(3, 1, 1, 1))
        y, x = _bounce(rng, radius, frames)  # each (frames,)
        dy = np.abs(pixel[None, :, None] - y[:, None, None])  # (frames, size, 1)
        dx = np.abs(pixel[None, None, :] - x[:, None, None])  # (frames, 1, size)
        distance = np.hypot(dx, dy) if rng.random() < 0.5 else np.maximum(dx, dy)
        cover = np.clip((radius - distance) * size + 0.5, 0.0, 1.0)  # an edge one pixel wide
        video += cover * (colour - video)
    return video


def _bounce(rng: np.random.Generator, radius: float, frames: int) -> np.ndarray:
    """Centres (2, frames) that stay within [radius, 1 - radius]: straight lines folded at the walls."""
    room = 1.0 - 2.0 * radius
    angle = rng.uniform(0.0, 2.0 * np.pi)
    velocity = rng.uniform(*SPEED) * np.array([np.sin(angle), np.cos(angle)])
    free = rng.uniform(0.0, room, size=(2, 1)) + velocity[:, None] * np.arange(frames)
    return radius + room - np.abs(free % (2.0 * room) - room)

"""Procedural textures for the maze: each a TEXELS x TEXELS pattern, with its coarser levels for distant surfaces.

A pattern is a pair (brightness, colourfulness) in [0, 1]: brightness times a mixture of grey and the place's tint.
"""

from functools import cache

import numpy as np

TEXELS = 32  # per block edge at the finest level
WALL_STYLES = 6
SAMPLES = 4  # per texel and axis: smooth pattern edges
LEVELS = 6  # 32, 16, 8, 4, 2, 1
LEVEL_START = np.cumsum([0] + [(TEXELS >> level) ** 2 for level in range(LEVELS)])  # first texel of each level


@cache
def wall_patterns() -> np.ndarray:
    """(styles, texels of all levels, 2) float32."""
    patterns = (_bricks(), _panels(), _stripes(), _diamonds(), _rings(), _tiles())
    return np.stack([_levels(*pattern) for pattern in patterns])


@cache
def floor_patterns() -> np.ndarray:
    """(2, texels of all levels, 2) float32: light and dark slabs, laid like a chess board."""
    return np.stack([_levels(*_slab(0.80)), _levels(*_slab(0.56))])


@cache
def ceiling_patterns() -> np.ndarray:
    """(2, texels of all levels, 2) float32: a plain panel and one with a lamp."""
    return np.stack([_levels(*_ceiling(False)), _levels(*_ceiling(True))])


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Sample points v (down), u (across), each (SAMPLES TEXELS)^2 in (0, 1)."""
    centre = (np.arange(SAMPLES * TEXELS) + 0.5) / (SAMPLES * TEXELS)
    return np.meshgrid(centre, centre, indexing="ij")


def _levels(brightness: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Box-filtered texels of every level, finest first: (texels of all levels, 2)."""
    samples = np.stack([brightness, colour], axis=-1)
    levels = []
    for level in range(LEVELS):
        edge = TEXELS >> level
        width = samples.shape[0] // edge
        levels.append(samples.reshape(edge, width, edge, width, 2).mean(axis=(1, 3)).reshape(-1, 2))
    return np.concatenate(levels).astype(np.float32)


def _bricks() -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    row = np.floor(4 * v)
    shifted = 2 * u + 0.5 * (row % 2)
    mortar = (np.abs(4 * v - row - 0.5) > 0.40) | (np.abs(shifted % 1 - 0.5) > 0.44)
    shade = 0.82 + 0.14 * np.sin(7.3 * row + 4.1 * np.floor(shifted % 2))
    return np.where(mortar, 0.5, shade), np.where(mortar, 0.2, 1.0)


def _panels() -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    edge = np.maximum(np.abs(u - 0.5), np.abs(v - 0.5))
    return np.where(edge > 0.43, 0.55, np.where(edge > 0.30, 1.0, 0.74)), np.where(edge > 0.43, 0.3, 0.8)


def _stripes() -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    light = np.sin(2 * np.pi * 3 * u) > 0
    return np.where(v > 0.8, 0.5, np.where(light, 1.0, 0.8)), np.where(light, 0.3, 1.0)


def _diamonds() -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    is_light = np.abs(2 * u % 1 - 0.5) + np.abs(2 * v % 1 - 0.5) < 0.38
    return np.where(is_light, 1.0, 0.78), np.where(is_light, 0.25, 1.0)


def _rings() -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    radius = np.hypot(u - 0.5, v - 0.5)
    ring = (radius < 0.16) | ((radius > 0.26) & (radius < 0.38))
    return np.where(ring, 1.0, 0.62), np.where(ring, 1.0, 0.35)


def _tiles() -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    joint = np.maximum(np.abs(4 * u % 1 - 0.5), np.abs(4 * v % 1 - 0.5)) > 0.42
    light = (np.floor(4 * u) + np.floor(4 * v)) % 2
    return np.where(joint, 0.55, 0.8 + 0.2 * light), np.where(joint, 0.3, 0.4 + 0.6 * (1 - light))


def _slab(brightness: float) -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    joint = np.maximum(np.abs(u - 0.5), np.abs(v - 0.5)) > 0.47
    return np.where(joint, 0.6 * brightness, brightness), np.full_like(u, 0.45)


def _ceiling(has_lamp: bool) -> tuple[np.ndarray, np.ndarray]:
    v, u = _grid()
    edge = np.maximum(np.abs(u - 0.5), np.abs(v - 0.5))
    is_lamp = (edge < 0.22) & has_lamp
    return np.where(is_lamp, 1.15, np.where(edge > 0.47, 0.28, 0.42)), np.where(is_lamp, 0.0, 0.25)

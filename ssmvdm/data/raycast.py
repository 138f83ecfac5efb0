"""Pixels of a block world: ray casting for all frames, columns and rows at once, in numpy.

Walls are one block high, the eye is half a block above the floor. A camera at p with heading a sends through image
column c the ray r_c = (cos a, sin a) + k_c (-sin a, cos a) with k_c = tan(fov / 2) (2 c + 1 - w) / w. Its part along
the heading has length one, so the distance d counted in ray lengths is the depth: the wall hit by column c covers
focal / d rows, and the floor seen y rows from the horizon is at p + focal / (2 y) r_c. No fisheye.

A ray meets the grid line x = i at d = (i - p_x) / r_x. All lines of both axes are tried together and the nearest one
behind which there is a wall is kept: (lines, frames, columns) numbers, no marching.
"""

import numpy as np

from ssmvdm.data import textures
from ssmvdm.data.textures import LEVEL_START, LEVELS, TEXELS

FIELD_OF_VIEW = np.deg2rad(80.0)
FOG_DEPTH = 7.0  # blocks over which light falls to 1/e
SIDE_LIGHT = (0.78, 1.0)  # of walls met along x and along y: corners stay visible
LAMP_SPACING = 2  # blocks


def render(grid, style, tint, position, heading, size: int) -> np.ndarray:
    """Video (3, frames, size, size) float32 in [0, 1] of a block world.

    grid (rows, columns) bool, style (rows, columns) int, tint (rows, columns, 3) float32: see `ssmvdm.data.maze.Maze`.
    position (frames, 2), heading (frames,) float64: camera poses, inside open blocks.
    """
    focal = 0.5 * size / np.tan(0.5 * FIELD_OF_VIEW)  # pixels
    k = np.tan(0.5 * FIELD_OF_VIEW) * (2 * np.arange(size) + 1 - size) / size
    forward = np.stack([np.cos(heading), np.sin(heading)])[:, :, None]  # (2, frames, 1)
    rays = forward + k * np.stack([-forward[1], forward[0]])  # (2, frames, columns)
    origin = position.T[:, :, None]
    horizon = np.arange(size) + 0.5 - 0.5 * size  # rows from the horizon, downwards

    depth, block, across, light = _hits(grid, origin, rays)
    reach = (0.5 * focal / depth)[:, None, :]  # half the height of the wall, in rows
    wall_part = np.clip(reach - np.abs(horizon)[:, None] + 0.5, 0.0, 1.0).astype(np.float32)  # smooth edges
    wall = _wall_texels(depth, block, across, horizon, focal)
    wall_light = wall_part * (light * np.exp(-depth / FOG_DEPTH))[:, None, :].astype(np.float32)
    plane, plane_depth = _plane_texels(grid.shape, origin, rays, horizon, focal)
    plane_light = (1.0 - wall_part) * np.exp(-plane_depth / FOG_DEPTH).astype(np.float32)[:, None]

    wall_atlas = _paint(textures.wall_patterns()[style], tint)
    plane_atlas = np.concatenate([_paint(patterns, tint) for patterns in _plane_patterns(grid.shape)], axis=1)
    video = np.empty((3, *wall_light.shape), np.float32)
    for channel in range(3):
        np.multiply(wall_atlas[channel].take(wall), wall_light, out=video[channel])
        video[channel] += plane_atlas[channel].take(plane) * plane_light
    return np.minimum(video, 1.0, out=video)


def _hits(grid, origin, rays):
    """First wall along each ray, each (frames, columns): depth, flat block index, place across its face, light."""
    depth, cell, across = [], [], []
    for axis in (0, 1):  # grid lines across x, then across y
        lines = np.arange(1, grid.shape[1 - axis])[:, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (lines - origin[axis]) / rays[axis]  # (lines, frames, columns)
        met = origin[1 - axis] + distance * rays[1 - axis]  # the other coordinate
        is_inside = (distance > 0.0) & (met >= 0.0) & (met < grid.shape[axis])
        along = lines - (rays[axis] < 0.0)  # index of the block entered
        beside = np.floor(np.where(is_inside, met, 0.0)).astype(np.int64)
        row, column = (beside, along) if axis == 0 else (along, beside)
        is_wall = is_inside & grid[row, column]
        depth.append(np.where(is_wall, distance, np.inf))
        cell.append(np.broadcast_to(row * grid.shape[1] + column, met.shape))
        across.append(met)
    lines_x = len(depth[0])
    depth, cell, across = (np.concatenate(parts) for parts in (depth, cell, across))
    first = depth.argmin(axis=0)[None]
    depth, cell, across = (np.take_along_axis(values, first, axis=0)[0] for values in (depth, cell, across))
    light = np.where(first[0] < lines_x, *SIDE_LIGHT)
    return np.maximum(depth, 1e-3), cell, across % 1.0, light


def _wall_texels(depth, block, across, horizon, focal) -> np.ndarray:
    """Flat index into the wall atlas (frames, rows, columns); the level is the one whose texels are about a pixel."""
    level = _level(depth * TEXELS / focal)
    edge = TEXELS >> level
    start = block * LEVEL_START[-1] + LEVEL_START[level] + (across * edge).astype(np.int64)
    scale = (edge * depth / focal)[:, None, :]  # texels per row
    edge = edge[:, None, :]
    down = np.clip((horizon[:, None] * scale + 0.5 * edge).astype(np.int32), 0, edge - 1)
    return down * edge + start[:, None, :]


def _plane_texels(shape, origin, rays, horizon, focal) -> tuple[np.ndarray, np.ndarray]:
    """Flat index into the atlas of floor, then ceiling (frames, rows, columns), and the depth of each row (rows,)."""
    depth = 0.5 * focal / np.maximum(np.abs(horizon), 0.5)
    level = _level(TEXELS * depth / focal * np.sqrt(2.0 * depth))[:, None]  # between the footprint across and along
    edge = TEXELS >> level
    x, y = (origin[axis][:, None] + depth[:, None] * rays[axis][:, None, :] for axis in (0, 1))
    column = np.clip(x, 0.0, shape[1] - 1e-6)
    row = np.clip(y, 0.0, shape[0] - 1e-6)
    column_block, row_block = column.astype(np.int64), row.astype(np.int64)
    texel = ((row - row_block) * edge).astype(np.int64) * edge + ((column - column_block) * edge).astype(np.int64)
    surface = np.where(horizon < 0.0, shape[0] * shape[1], 0)[:, None]  # ceiling blocks follow the floor's
    return (row_block * shape[1] + column_block + surface) * LEVEL_START[-1] + LEVEL_START[level] + texel, depth


def _level(texels_per_pixel: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(np.log2(texels_per_pixel)), 0, LEVELS - 1).astype(np.int64)


def _plane_patterns(shape) -> tuple[np.ndarray, np.ndarray]:
    """Patterns of every block of the floor and of the ceiling, each (rows, columns, texels, 2)."""
    row, column = np.indices(shape)
    has_lamp = (row % LAMP_SPACING == 1) & (column % LAMP_SPACING == 1)
    return textures.floor_patterns()[(row + column) % 2], textures.ceiling_patterns()[has_lamp.astype(np.int64)]


def _paint(patterns: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Patterns (rows, columns, texels, 2) in the colour of their blocks: (3, rows * columns * texels)."""
    brightness, colour = patterns[..., 0], patterns[..., 1]
    return np.stack([(brightness * (1.0 - colour + colour * tint[..., c, None])).reshape(-1) for c in range(3)])

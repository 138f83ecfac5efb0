"""A first-person walk through a maze: video data that needs no download.

A clip is a function of its seed. The maze has loops and rooms, its walls carry textures and colours that belong to
places, and the walker keeps coming back to where it has been: what stands around the next corner was decided many
frames ago, the long-range consistency that GQN-Mazes and MineRL Navigate test.

The world is a grid of unit blocks, each wall or floor; a walk is a list of camera poses in it. `ssmvdm.data.raycast`
turns poses into pixels.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssmvdm.data.checks import check_clip_arguments
from ssmvdm.data.raycast import render
from ssmvdm.data.textures import WALL_STYLES

SPEED = 0.2  # blocks per frame
TURN_RATE = np.deg2rad(11.25)  # per frame
CORNER_RADIUS = 0.5  # blocks; a corner taken so keeps half a block of distance to every wall
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # (dx, dy) of the headings 0, 90, 180 and 270 degrees


@dataclass(frozen=True)
class Maze:
    """grid  (rows, rows) bool: True where the block in row y, column x is wall; junctions are at odd (x, y).
    style (rows, rows) int: which texture each block wears.
    tint  (rows, rows, 3) float32 in [0, 1]: the colour of each block, smooth over the maze."""

    grid: np.ndarray
    style: np.ndarray
    tint: np.ndarray


@dataclass(frozen=True)
class Walk:
    """position (frames, 2) float64: (x, y) in blocks; heading (frames,) float64: radians, 0 along x, 90 deg along y."""

    maze: Maze
    position: np.ndarray
    heading: np.ndarray


def clips(seed: int, batch: int, frames: int, size: int, dtype: type = np.float32) -> np.ndarray:
    """`batch` clips of a training step.

    Returns (batch, 3, frames, size, size), float32 in [0, 1] or uint8. Clip i depends on (seed, i) only, so a larger
    batch begins with the smaller one. ValueError for a negative seed or a count below one.
    """
    check_clip_arguments(seed, frames, size, batch)
    return np.stack([clip((seed, i), frames, size, dtype) for i in range(batch)])


def clip(seed: tuple[int, ...], frames: int, size: int, dtype: type = np.float32) -> np.ndarray:
    """One clip (3, frames, size, size), a function of its seed."""
    return render_walk(plan_walk(seed, frames), size, dtype)


def render_walk(walk: Walk, size: int, dtype: type = np.float32) -> np.ndarray:
    """The walk as a square video (3, frames, size, size), float32 in [0, 1] or uint8 in [0, 255]."""
    video = render(walk.maze.grid, walk.maze.style, walk.maze.tint, walk.position, walk.heading, size)
    return video if np.dtype(dtype) == np.float32 else (255.0 * video + 0.5).astype(dtype)


def plan_walk(seed: int | tuple[int, ...], frames: int, cells: int = 6) -> Walk:
    """Poses for `frames` frames in a maze of cells x cells junctions; a longer walk begins with the shorter one."""
    seed = seed if isinstance(seed, tuple) else (seed,)
    maze = make_maze(np.random.default_rng((*seed, 1)), cells)
    rng = np.random.default_rng((*seed, 2))
    return Walk(maze, *_poses(_route(maze.grid, rng), start=4.0 * rng.random(), frames=frames))


def make_maze(rng: np.random.Generator, cells: int) -> Maze:
    """A random spanning tree over the junctions, then a few walls opened for loops and two rooms cleared."""
    rows = 2 * cells + 1
    grid = np.ones((rows, rows), dtype=bool)
    grid[1, 1] = False
    stack = [(1, 1)]
    while stack:  # depth first: long, winding corridors
        x, y = stack[-1]
        steps = [(dx, dy) for dx, dy in DIRECTIONS if 0 < x + 2 * dx < rows and 0 < y + 2 * dy < rows]
        steps = [(dx, dy) for dx, dy in steps if grid[y + 2 * dy, x + 2 * dx]]
        if not steps:
            stack.pop()
            continue
        dx, dy = steps[rng.integers(len(steps))]
        grid[y + dy, x + dx] = grid[y + 2 * dy, x + 2 * dx] = False
        stack.append((x + 2 * dx, y + 2 * dy))
    if cells > 1:
        for _ in range(cells):
            x, y = 2 * rng.integers(1, cells, size=2)
            grid[(y - 1, x) if rng.random() < 0.5 else (y, x - 1)] = False
        for _ in range(2):
            x, y = 2 * rng.integers(0, cells - 1, size=2) + 1
            grid[y : y + 3, x : x + 3] = False
    style = rng.integers(0, WALL_STYLES, size=grid.shape)
    return Maze(grid, style, _tints(rng, rows))


def _tints(rng: np.random.Generator, rows: int) -> np.ndarray:
    """(rows, rows, 3): the hue runs through about half a turn along each axis, so colour tells the place."""
    across, down = rng.choice([-0.5, 0.5], size=2) * rng.uniform(0.8, 1.2, size=2)
    row, column = np.indices((rows, rows)) / rows
    turn = rng.random() + across * column + down * row
    return (0.58 + 0.42 * np.cos(2 * np.pi * (turn[..., None] - np.arange(3) / 3.0))).astype(np.float32)


def _route(grid: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Junctions one after the other, for ever: to a random goal, then back to one already visited, and so on."""
    cells = grid.shape[0] // 2
    visited = [tuple(int(i) for i in 2 * rng.integers(0, cells, size=2) + 1)]
    yield visited[0]
    for trip in itertools.count():
        if trip % 2 and len(visited) > 2:
            goal = visited[rng.integers(len(visited) - 2)]
        else:
            goal = tuple(int(i) for i in 2 * rng.integers(0, cells, size=2) + 1)
        path = _shortest_path(grid, visited[-1], goal)
        visited.extend(path)
        yield from path


def _shortest_path(grid: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
    """Junctions after `start` up to and with `goal`, breadth first."""
    onward = {goal: goal}  # junction -> the next one on the way to goal
    queue = deque([goal])
    while start not in onward:
        x, y = queue.popleft()
        for dx, dy in DIRECTIONS:
            neighbour = (x + 2 * dx, y + 2 * dy)
            if not grid[y + dy, x + dx] and neighbour not in onward:
                onward[neighbour] = (x, y)
                queue.append(neighbour)
    path = []
    while start != goal:
        start = onward[start]
        path.append(start)
    return path


def _poses(route: Iterator[tuple[int, int]], start: float, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses at times start, start + 1, ... of a walk along the junctions of `route`."""
    before, here = next(route), next(route)
    heading, time = _angle(before, here), 0.0
    x, y = np.array(before) + CORNER_RADIUS * np.array([np.cos(heading), np.sin(heading)])
    pieces = []  # (begin, x, y, heading, speed, turn rate): constant speed and turn rate until the next piece begins
    while time < start + frames:
        onward = next(route)
        straight = (2.0 - 2.0 * CORNER_RADIUS) / SPEED
        for duration, speed, rate in [(straight, SPEED, 0.0), *_corner(_angle(here, onward) - heading)]:
            pieces.append((time, x + 0.5, y + 0.5, heading, speed, rate))
            (x, y), heading = _advance(np.array([x, y]), heading, speed, rate, duration)
            time += duration
        before, here = here, onward
    begin, x, y, heading, speed, rate = np.array(pieces).T
    times = start + np.arange(frames)
    piece = np.searchsorted(begin, times, side="right") - 1
    origin = np.stack([x, y], axis=-1)[piece]
    return _advance(origin, heading[piece], speed[piece], rate[piece], times - begin[piece])


def _angle(start: tuple[int, int], stop: tuple[int, int]) -> float:
    return float(np.arctan2(stop[1] - start[1], stop[0] - start[0]))


def _corner(turn: float) -> list[tuple[float, float, float]]:
    """How a junction is passed, as (duration in frames, speed, turn rate), from CORNER_RADIUS before it to as much
    after it: straight on, along a quarter circle, or up to the middle, about and back."""
    quarters = round(turn / (np.pi / 2)) % 4
    if quarters == 0:
        return [(2 * CORNER_RADIUS / SPEED, SPEED, 0.0)]
    if quarters == 2:
        walk = (CORNER_RADIUS / SPEED, SPEED, 0.0)
        return [walk, (np.pi / TURN_RATE, 0.0, TURN_RATE), walk]
    rate = TURN_RATE if quarters == 1 else -TURN_RATE
    return [(np.pi / 2 / TURN_RATE, CORNER_RADIUS * TURN_RATE, rate)]


def _advance(position, heading, speed, rate, time):
    """Constant speed v and turn rate w for t: the arc's chord has length v t sinc(w t / 2), direction a + w t / 2."""
    half = 0.5 * np.asarray(rate * time)
    chord = np.asarray(speed * time * np.sinc(half / np.pi))[..., None]
    direction = np.stack([np.cos(heading + half), np.sin(heading + half)], axis=-1)
    return position + chord * direction, heading + 2.0 * half

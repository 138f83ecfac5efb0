"""The maze walk: deterministic, inside its maze, geometrically true, and worth remembering."""

import time

import numpy as np
import pytest

from ssmvdm.data import maze, raycast, textures


def test_clips_have_the_promised_shape_type_and_range():
    video = maze.clips(seed=3, batch=2, frames=5, size=24)
    assert video.shape == (2, 3, 5, 24, 24)
    assert video.dtype == np.float32
    assert video.min() >= 0.0
    assert video.max() <= 1.0
    assert np.isfinite(video).all()


def test_a_clip_is_a_function_of_its_seed():
    first = maze.clips(7, 2, 6, 16)
    assert np.array_equal(first, maze.clips(7, 2, 6, 16))
    assert not np.array_equal(first, maze.clips(8, 2, 6, 16))
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first, maze.clips(7, 3, 6, 16)[:2])


def test_uint8_is_the_rounded_float_video():
    walk = maze.plan_walk(1, 4)
    exact, bytes_ = maze.render_walk(walk, 16), maze.render_walk(walk, 16, np.uint8)
    assert bytes_.dtype == np.uint8
    assert np.abs(bytes_ / 255.0 - exact).max() <= 0.5 / 255.0 + 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_a_longer_walk_begins_with_the_shorter_one(seed):
    short, long = maze.plan_walk(seed, 20), maze.plan_walk(seed, 300)
    assert np.array_equal(short.position, long.position[:20])
    assert np.array_equal(short.heading, long.heading[:20])


@pytest.mark.parametrize("cells", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("seed", range(4))
def test_every_junction_can_be_reached_and_the_maze_is_closed(seed, cells):
    grid = maze.make_maze(np.random.default_rng(seed), cells).grid
    assert grid[[0, -1]].all()
    assert grid[:, [0, -1]].all()
    reached, frontier = {(1, 1)}, [(1, 1)]
    while frontier:
        x, y = frontier.pop()
        for dx, dy in maze.DIRECTIONS:
            block = (x + dx, y + dy)
            if not grid[block[1], block[0]] and block not in reached:
                reached.add(block)
                frontier.append(block)
    assert {(2 * i + 1, 2 * j + 1) for i in range(cells) for j in range(cells)} <= reached


@pytest.mark.parametrize("seed", range(8))
def test_the_walker_moves_smoothly_and_keeps_clear_of_walls(seed):
    walk = maze.plan_walk(seed, 400)
    step = np.linalg.norm(np.diff(walk.position, axis=0), axis=1)
    turn = np.abs(np.diff(walk.heading))
    assert step.max() <= maze.SPEED + 1e-9
    assert turn.max() <= maze.TURN_RATE + 1e-9
    assert (step + turn).min() > 0.0
    clearance = 0.5 - 1e-9
    for dx, dy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        column, row = (walk.position + clearance / np.sqrt(2) * np.array([dx, dy])).astype(int).T
        assert not walk.maze.grid[row, column].any()


@pytest.mark.parametrize("seed", range(5))
def test_the_walk_comes_back_to_where_it_was(seed):
    position = maze.plan_walk(seed, 256).position
    distance = np.linalg.norm(position[:, None] - position[None], axis=-1)
    far_apart = np.abs(np.subtract.outer(np.arange(256), np.arange(256))) > 48
    assert (distance[far_apart] < 0.25).any()


def test_the_same_pose_shows_the_same_picture_whenever_it_is_taken():
    walk = maze.plan_walk(0, 8)
    there_and_back = maze.Walk(walk.maze, walk.position[[0, 7, 0]], walk.heading[[0, 7, 0]])
    video = maze.render_walk(there_and_back, 32)
    assert np.array_equal(video[:, 0], video[:, 2])
    assert not np.array_equal(video[:, 0], video[:, 1])


def test_a_wall_covers_focal_over_distance_rows():
    """Below the lower edge of a near wall one sees the floor that one sees without it, above the edge one does not."""
    size, distance = 96, 2.01
    position, heading = np.array([[3.0 - distance + 2.0, 2.5]]), np.array([0.0])
    focal = 0.5 * size / np.tan(0.5 * raycast.FIELD_OF_VIEW)
    columns = []
    for end in (5, 9):  # of the corridor; the wall behind it is at x = end
        grid = np.ones((5, 12), bool)
        grid[2, 1:end] = False
        video = raycast.render(grid, np.zeros((5, 12), int), np.ones((5, 12, 3), np.float32), position, heading, size)
        columns.append(video[:, 0, :, size // 2])
    differs = (columns[0] != columns[1]).any(axis=0)
    reach = 0.5 * focal / (5.0 - position[0, 0])
    last_row = int(np.flatnonzero(differs).max())
    assert abs((last_row + 0.5 - size / 2) - reach) <= 1.0
    assert differs[size // 2 : last_row].all()


def test_a_march_along_the_ray_finds_the_same_wall():
    walk = maze.plan_walk(5, 3)
    k = np.linspace(-0.8, 0.8, 9)
    forward = np.stack([np.cos(walk.heading), np.sin(walk.heading)])[:, :, None]
    rays = forward + k * np.stack([-forward[1], forward[0]])
    depth, block, _, _ = raycast._hits(walk.maze.grid, walk.position.T[:, :, None], rays)
    for frame in range(3):
        for column in range(9):
            distance = depth[frame, column]
            for share in np.linspace(0.0, 0.999, 200):
                x, y = walk.position[frame] + share * distance * rays[:, frame, column]
                assert not walk.maze.grid[int(y), int(x)]
            x, y = walk.position[frame] + (distance + 1e-6) * rays[:, frame, column]
            assert int(y) * walk.maze.grid.shape[1] + int(x) == block[frame, column]
            assert walk.maze.grid[int(y), int(x)]


def test_coarser_texture_levels_keep_the_mean():
    for patterns in (textures.wall_patterns(), textures.floor_patterns(), textures.ceiling_patterns()):
        assert patterns.shape[1] == textures.LEVEL_START[-1]
        for level in range(textures.LEVELS):
            texels = patterns[:, textures.LEVEL_START[level] : textures.LEVEL_START[level + 1]]
            np.testing.assert_allclose(texels.mean(axis=1, dtype=np.float64), patterns[:, -1], rtol=1e-6)


def test_no_picture_is_a_flat_colour():
    video = maze.clips(2, 1, 200, 32)[0]
    assert video.std(axis=(0, 2, 3)).min() > 0.02


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 1, 4, 8), "seed"),
        ((0, 0, 4, 8), "batch"),
        ((0, 1, 0, 8), "frames"),
        ((0, 1, 4, 1), "size"),
        ((0, 1, 2.5, 8), "frames"),
        ((0, 1, True, 8), "frames"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: expected a whole number"):
        maze.clips(*arguments)


def test_a_clip_that_no_memory_holds_is_refused():
    with pytest.raises(ValueError, match=r"frames and size: .* at most 2,147,483,648 numbers, got 3 × 100,000,000 × 8"):
        maze.clips(0, 1, 100_000_000, 8)
    with pytest.raises(ValueError, match="frames and size"):
        maze.clips(0, 1, np.int64(10**17), np.int64(10**5))  # beyond 64 bits


def test_256_frames_at_64_pixels_take_less_than_a_second():
    maze.clips(0, 1, 2, 16)  # textures are made once
    walk = maze.plan_walk(0, 256)
    start = time.process_time()  # processor time: other work on the machine does not count
    maze.render_walk(walk, 64)
    assert time.process_time() - start < 1.0

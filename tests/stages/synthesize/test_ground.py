"""The ground's classes, its kerbs, and where rays meet it."""

import numpy as np
import pytest
from xd3d.stages.synthesize.classes import DRIVEABLE, SIDEWALK, TERRAIN
from xd3d.stages.synthesize.style_sampling import city_style
from xd3d.stages.synthesize.world import World


@pytest.fixture(scope="module")
def world():
    return World(city_style("singapore", rng=np.random.default_rng(0)), 0, length=200.0)


def test_classes_follow_the_cross_section(world):
    ground, layout = world.ground, world.style.layout
    x = np.linspace(0, 200, 400)
    x = x[np.abs(ground.crossing_distance(x)) > ground.half_crossing + layout.sidewalk_width + 1]
    for side in (-1, 1):
        edge = layout.half_road
        for offset, label in (
            (edge - 0.1, DRIVEABLE),
            (edge + layout.verge_width / 2, TERRAIN),
            (edge + layout.verge_width + layout.sidewalk_width / 2, SIDEWALK),
            (edge + layout.verge_width + layout.sidewalk_width + 1, TERRAIN),
        ):
            assert (ground.classes(x, ground.centre(x) + side * offset) == label).all()


def test_side_streets_reach_far_and_have_sidewalks(world):
    ground = world.ground
    crossing = float(ground.crossings[0])
    for n in (-80.0, 80.0):
        x = crossing + np.array([0.0, ground.half_crossing + 0.5])
        assert ground.classes(x, np.full(2, n)).tolist() == [DRIVEABLE, SIDEWALK]


def test_rays_meet_the_ground_where_a_march_first_gets_below_it(world):
    ground, kerb, step = world.ground, world.style.layout.kerb_height, 0.004
    rng = np.random.default_rng(1)
    x, y, _ = world.lane_pose(float(ground.crossings[1]) - 9)
    origin = np.array([x, y, 1.8], np.float32).reshape(3, 1, 1)
    turn, dip = rng.uniform(0, 2 * np.pi, (6, 50)), rng.uniform(0.12, 0.9, (6, 50))
    direction = np.stack([np.cos(turn) * np.cos(dip), np.sin(turn) * np.cos(dip), -np.sin(dip)]).astype(np.float32)
    found = ground.intersect(origin, direction)
    steps = np.arange(0, 20, step)
    for row in range(6):
        for column in range(50):
            path = origin[:, 0] + direction[:, row, column, None] * steps
            height = np.where(ground.is_road(path[0], path[1]), 0.0, kerb)
            below = path[2] <= height
            assert found[row, column] == pytest.approx(steps[np.argmax(below)], abs=0.05)


def test_rays_that_rise_or_run_to_the_horizon_meet_no_ground(world):
    origin = np.array([0, 0, 1.5], np.float32).reshape(3, 1, 1)
    direction = np.array([[1, 0, 0.01], [1, 0, 0], [1, 0, -1e-4]], np.float32).T[:, None]
    assert np.isinf(world.ground.intersect(origin, direction)).all()

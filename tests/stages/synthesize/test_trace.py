"""Culling by windows must change nothing: every ray meets what it meets when tried against every solid."""

import numpy as np
import pytest
from xd3d.stages.synthesize.camera import CameraModel, CameraRays, camera_pose
from xd3d.stages.synthesize.lidar_rays import LidarRays
from xd3d.stages.synthesize.poses import rotation
from xd3d.stages.synthesize.primitives import intersect
from xd3d.stages.synthesize.style_sampling import random_style
from xd3d.stages.synthesize.trace import GROUND, SKY_HIT, cast, surface
from xd3d.stages.synthesize.world import World


def lidar_pose(x, y, yaw, height):
    pose = np.eye(4)
    pose[:3, 0] = np.sin(yaw), -np.cos(yaw), 0
    pose[:3, 1] = np.cos(yaw), np.sin(yaw), 0
    pose[:3, 3] = x, y, height
    return pose


def nearby(world, time, reach):
    solids = world.solids(time)
    x, y, _ = world.lane_pose(world.cruise_speed * time)
    return solids.take(np.flatnonzero(np.hypot(solids.centre[:, 0] - x, solids.centre[:, 1] - y) < reach))


def exhaustive(rays, solids, ground):
    """Reference: all rays against all solids, no windows, no order."""
    distance = ground.intersect(rays.origin, rays.direction)
    solid = np.where(np.isfinite(distance), GROUND, SKY_HIT)
    for row in range(len(solids)):
        hit = intersect(solids, row, rays.origin, rays.direction)
        closer = hit < distance
        distance[closer], solid[closer] = hit[closer], row
    return distance, solid


def assert_same(rays, solids, ground):
    distance, solid = exhaustive(rays, solids, ground)
    hits = cast(rays, solids, ground)
    np.testing.assert_array_equal(hits.distance, distance)
    assert (hits.solid != solid).mean() < 1e-3  # only solids at the very same distance may swap


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("turn", [0.0, 1.9])
def test_camera_misses_no_solid(seed, turn):
    world = World(random_style(np.random.default_rng(seed)), seed, length=60.0)
    x, y, yaw = world.lane_pose(3 * world.cruise_speed)
    camera = CameraModel.from_field_of_view(width=72, height=40)
    pose = camera_pose(x, y, yaw + turn, height=1.6, pitch=0.05)
    assert_same(CameraRays(camera, pose), nearby(world, 3.0, 45), world.ground)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_moving_lidar_misses_no_solid(seed):
    world = World(random_style(np.random.default_rng(seed)), seed, length=60.0)
    start, end = (lidar_pose(*world.lane_pose(12 + shift), 1.84) for shift in (0.0, 1.2))
    rays = LidarRays(
        elevations=np.radians(np.linspace(-30, 10, 16)),
        azimuths=np.pi + 2 * np.pi * (np.arange(150) + 0.5) / 150,
        world_from_lidar_start=start,
        world_from_lidar_end=end,
        max_range=200.0,
    )
    assert_same(rays, nearby(world, 2.0, 40), world.ground)


@pytest.mark.parametrize("seed", [3, 6])
def test_tilted_lidar_misses_no_solid(seed):
    """Nose down by 20 degrees and leaning by 6, so that solids stand slanted in the sensor's frame."""
    world = World(random_style(np.random.default_rng(seed)), seed, length=60.0)
    tilt = np.eye(4)
    tilt[:3, :3] = rotation(yaw=0.0, pitch=np.radians(6), roll=np.radians(-20))  # about the LiDAR's own axes
    pose = lidar_pose(*world.lane_pose(12.0), 1.1) @ tilt
    assert pose[2, 1] < -0.3
    rays = LidarRays(
        elevations=np.radians(np.linspace(-20, 50, 56)),
        azimuths=np.pi + 2 * np.pi * (np.arange(100) + 0.5) / 100,
        world_from_lidar_start=pose,
        world_from_lidar_end=pose,
        max_range=200.0,
    )
    assert_same(rays, nearby(world, 2.0, 40), world.ground)


def test_surface_returns_points_in_the_solids_own_axes():
    world = World(random_style(np.random.default_rng(7)), 7, length=60.0)
    camera = CameraModel.from_field_of_view(width=72, height=40)
    rays = CameraRays(camera, camera_pose(*world.lane_pose(20.0), height=1.6))
    solids = nearby(world, 0.0, 60)
    hits = cast(rays, solids, world.ground)
    chosen = hits.solid >= 0
    index = hits.solid[chosen]
    points = (rays.origin + rays.direction * hits.distance)[:, chosen].T
    local, normals = surface(solids, index, points)
    assert (np.abs(local) <= solids.half[index] * np.maximum(1, 1 - solids.taper[index].min()) + 2e-3).all()
    np.testing.assert_allclose(
        np.linalg.norm(local, axis=1), np.linalg.norm(points - solids.centre[index], axis=1), rtol=1e-4
    )
    facing = (normals * rays.direction[:, chosen].T).sum(axis=1)
    assert (facing < 1e-3).mean() > 0.99

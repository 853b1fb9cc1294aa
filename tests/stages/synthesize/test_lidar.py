"""Sweeps: agreement with the pictures, ego motion, drop-out, fog, and the two sensors."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from xd3d.errors import ConfigError
from xd3d.stages.synthesize.camera import CameraModel, camera_pose, render
from xd3d.stages.synthesize.classes import CAR, CATEGORY_NAMES, DRIVEABLE, NOISE
from xd3d.stages.synthesize.lidar import scan
from xd3d.stages.synthesize.rigs import LIDARS
from xd3d.stages.synthesize.style_sampling import city_style
from xd3d.stages.synthesize.world import World

SENSORS = {"boston": LIDARS["boston"], "singapore": LIDARS["singapore"]}


def lidar_pose(x, y, yaw, height):
    pose = np.eye(4)
    pose[:3, 0] = np.sin(yaw), -np.cos(yaw), 0
    pose[:3, 1] = np.cos(yaw), np.sin(yaw), 0
    pose[:3, 3] = x, y, height
    return pose


@cache
def street(name, seed=0, **hour):
    return World(city_style(name, rng=np.random.default_rng(seed), **hour), seed, length=80.0)


def poses(world, lidar, time):
    """LiDAR poses at the start and the end of the spin of a car that cruises along its lane."""
    return [
        lidar_pose(*world.lane_pose(world.cruise_speed * at), lidar.mount_height)
        for at in (time - lidar.spin_seconds, time)
    ]


@cache
def cars_at(world, time):
    return [box for box in world.objects(time) if box.category == "vehicle.car"]


def sweep_of(world, lidar, time=5.0, seed=0):
    return scan(world, lidar, *poses(world, lidar, time), time, np.random.default_rng(seed))


def project(points, camera, world_from_camera):
    """Pixel column, row and depth of world points [P, 3], and which lie within the image."""
    local = (points - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    depth = np.maximum(local[:, 2], 1e-6)
    u, v = (local @ camera.intrinsics.T)[:, :2].T / depth
    within = (local[:, 2] > 0.5) & (u > 1) & (u < camera.width - 1) & (v > 1) & (v < camera.height - 1)
    return u.astype(int), v.astype(int), local[:, 2], within


@pytest.mark.parametrize("name", ["boston", "singapore"])
@pytest.mark.parametrize("direction", [0.0, -2.0])
def test_points_fall_on_pixels_of_their_class_and_depth(name, direction):
    """97 % or more of the points agree with a pixel at most one away (edges; the sensors sit 0.3 m apart)."""
    same = near = total = 0
    camera, lidar, time = CameraModel.from_field_of_view(), SENSORS[name], 5.0
    for seed in range(2):
        world = street(name, seed)
        sweep = sweep_of(world, lidar, time)
        shot_time = time - lidar.spin_seconds * (1 - lidar.fraction_at(-direction))
        x, y, yaw = world.lane_pose(world.cruise_speed * shot_time)
        pose = camera_pose(x, y, yaw + direction, height=lidar.mount_height - 0.3)
        shot = render(world, camera, pose, shot_time, np.random.default_rng(0))
        end = poses(world, lidar, time)[1]
        u, v, depth, within = project(sweep.points[:, :3] @ end[:3, :3].T + end[:3, 3], camera, pose)
        u, v, depth, labels = u[within], v[within], depth[within], sweep.labels[within]
        hood = [(shot.labels[v + i, u + j], shot.depth[v + i, u + j]) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        same += np.any([label == labels for label, _ in hood], axis=0).sum()
        near += np.any([np.abs(other - depth) < 0.3 + 0.03 * depth for _, other in hood], axis=0).sum()
        total += len(u)
    assert total > 3000
    assert same / total >= 0.97
    assert near / total >= 0.97


def test_moving_sensor_sees_the_still_world_where_it_is():
    """Points of a spin at 20 m/s, given at its end, lie on the surfaces that a sensor at rest there sees."""
    lidar = replace(LIDARS["boston"], range_noise=0.0, dropout=0.0)
    world = street("boston", 1)
    x, y, yaw = world.lane_pose(30.0)
    end = lidar_pose(x, y, yaw, lidar.mount_height)
    start = lidar_pose(x - np.cos(yaw), y - np.sin(yaw), yaw - 0.03, lidar.mount_height)
    sweep = scan(world, lidar, start, end, 3.0, np.random.default_rng(0))
    points = sweep.points[:, :3] @ end[:3, :3].T + end[:3, 3]
    road = sweep.labels == DRIVEABLE
    assert road.sum() > 5000
    assert np.abs(points[road, 2]).max() < 0.2
    assert np.percentile(np.abs(points[road, 2]), 99) < 0.03
    agree = world.ground.classes(points[road, 0].astype(np.float32), points[road, 1].astype(np.float32)) == DRIVEABLE
    assert agree.mean() > 0.995


def test_moving_cars_are_met_when_the_beam_passes_them():
    world = street("singapore", 3)
    lidar = replace(LIDARS["singapore"], range_noise=0.0, spin_seconds=0.4)  # slow, to make the effect large
    time = 4.0
    end = poses(world, lidar, time)[1]
    sweep = scan(world, lidar, end, end, time, np.random.default_rng(0))
    cars = sweep.points[sweep.labels == CAR, :3]
    turned = np.array([lidar.fraction_at(float(angle)) for angle in np.arctan2(cars[:, 0], cars[:, 1])])
    points = cars @ end[:3, :3].T + end[:3, 3]
    held = {"met": 0, "stamp": 0}
    for point, part in zip(points[::9], turned[::9], strict=True):
        for key, at in (("met", time - lidar.spin_seconds * (1 - part)), ("stamp", time)):
            held[key] += any(
                abs(point[0] - box.centre[0]) < box.size[1] / 2 + 0.25
                and abs(point[1] - box.centre[1]) < box.size[0] / 2 + 0.45
                for box in cars_at(world, float(np.round(at, 2)))
            )
    assert held["met"] / len(points[::9]) > 0.97
    assert held["met"] > held["stamp"]


def test_fraction_runs_clockwise_from_the_start():
    lidar = LIDARS["boston"]
    angles = lidar.start_azimuth + np.array([0.0, 0.5, 1.0, 1.5]) * np.pi
    np.testing.assert_allclose([lidar.fraction_at(float(angle)) for angle in angles], [0, 0.25, 0.5, 0.75], atol=1e-9)
    assert 0 <= lidar.fraction_at(lidar.start_azimuth - 1e-17) < 1


@pytest.mark.parametrize("name", ["boston", "singapore"])
def test_points_stay_within_the_sensors_limits(name):
    lidar, world = SENSORS[name], street(name, 2)
    sweep = sweep_of(world, lidar)
    x, y, _, intensity, ring = sweep.points.T
    distance = np.linalg.norm(sweep.points[:, :3], axis=1)
    assert 10_000 < len(sweep.points) <= 32 * lidar.azimuth_steps
    assert distance.max() < lidar.max_range + 1
    assert distance.min() > 0.5
    assert ((intensity >= 0) & (intensity <= 255) & (intensity == np.round(intensity))).all()
    assert set(np.unique(ring)) <= set(range(32))
    assert set(np.unique(sweep.labels)) <= set(CATEGORY_NAMES)
    still = scan(world, lidar, *[poses(world, lidar, 5.0)[1]] * 2, 5.0, np.random.default_rng(0))
    rise = np.arctan2(still.points[:, 2], np.hypot(still.points[:, 0], still.points[:, 1]))
    np.testing.assert_allclose(rise, np.array(lidar.elevations)[still.points[:, 4].astype(int)], atol=1e-4)
    assert (np.diff(lidar.elevations) > 0).all()
    assert y.max() > 10 > -10 > y.min()
    assert x.max() > 5 > -5 > x.min()


def test_sensors_of_the_two_cities_differ():
    boston, singapore = SENSORS["boston"], SENSORS["singapore"]
    assert boston.elevations != singapore.elevations
    assert boston.azimuth_steps != singapore.azimuth_steps
    assert boston.range_noise != singapore.range_noise
    assert boston.mount_height != singapore.mount_height


def test_equal_generators_give_equal_sweeps_and_others_other_noise():
    world, lidar = street("boston", 4), SENSORS["boston"]
    first, same, other = (sweep_of(world, lidar, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.points, same.points)
    np.testing.assert_array_equal(first.labels, same.labels)
    assert len(first.points) != len(other.points)


def test_paint_on_the_road_shines():
    world, lidar = street("boston", 5), SENSORS["boston"]
    sweep = sweep_of(world, lidar)
    road = sweep.points[sweep.labels == DRIVEABLE, 3]
    assert np.percentile(road, 99) > 2.5 * np.median(road)


def test_fog_takes_far_points_and_adds_near_ones_of_no_class():
    lidar = SENSORS["singapore"]
    clear, fog = (sweep_of(street("singapore", 6, weather=weather), lidar) for weather in ("clear", "fog"))
    reach = [np.linalg.norm(sweep.points[:, :3], axis=1) for sweep in (clear, fog)]
    assert (clear.labels != NOISE).all()
    assert (reach[1][fog.labels != NOISE] > 40).sum() < 0.6 * (reach[0] > 40).sum()
    droplets = fog.labels == NOISE
    dense = sweep_of(street("singapore", 6, weather="dense fog"), lidar)
    assert (dense.labels == NOISE).mean() > 2 * droplets.mean()
    assert 0.005 < droplets.mean() < 0.35
    assert np.median(reach[1][droplets]) < 10
    assert fog.points[droplets, 3].max() < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [({"elevations": (0.1, 0.0)}, "rise from ring to ring"), ({"azimuth_steps": 0}, "got 0 steps")],
)
def test_impossible_sensor_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(LIDARS["boston"], **change)

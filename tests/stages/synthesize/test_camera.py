"""Pictures: geometry against formulas, labels that are real ids, and light that changes with hour and air."""

from functools import cache

import numpy as np
import pytest
from xd3d.stages.synthesize.camera import CameraModel, camera_pose, render
from xd3d.stages.synthesize.classes import CATEGORY_NAMES, DRIVEABLE, SIDEWALK, VEGETATION
from xd3d.stages.synthesize.style_sampling import city_style, random_style
from xd3d.stages.synthesize.world import World

CAMERA = CameraModel.from_field_of_view(width=200, height=112)


def picture(style, seed=0, time=4.0, turn=0.0):
    world = World(style, seed, length=60.0)
    pose = camera_pose(*np.add(world.lane_pose(world.cruise_speed * time), (0, 0, turn)).tolist(), height=1.5)
    return render(world, CAMERA, pose, time, np.random.default_rng(0))


@cache
def city_picture(name="boston", seed=0, **hour):
    return picture(city_style(name, rng=np.random.default_rng(seed), **hour), seed)


def test_field_of_view_spans_the_width():
    camera = CameraModel.from_field_of_view(width=400, height=225, degrees=70.0)
    edge = np.linalg.inv(camera.intrinsics) @ [400, 112.5, 1]
    assert np.degrees(np.arctan2(edge[0], edge[2])) == pytest.approx(35)
    assert edge[1] == pytest.approx(0)


def test_camera_pose_looks_along_yaw_and_down_by_pitch():
    pose = camera_pose(1.0, 2.0, np.pi / 2, height=3.0, pitch=0.3)
    np.testing.assert_allclose(
        pose @ [0, 0, 1, 0], [0, np.cos(0.3), -np.sin(0.3), 0], atol=1e-12
    )  # forward: north, down
    np.testing.assert_allclose(pose @ [1, 0, 0, 0], [1, 0, 0, 0], atol=1e-12)  # right: east
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    np.testing.assert_array_equal(pose[:3, 3], [1, 2, 3])


def test_road_depth_is_height_over_slope():
    shot = city_picture("singapore", 2)
    v = np.arange(112) + 0.5
    focal = CAMERA.intrinsics[1, 1]
    expected = 1.5 * focal / np.maximum(v - 56, 1e-9)
    road = (shot.labels == DRIVEABLE) & (v[:, None] > 60)
    assert road.sum() > 1000
    error = np.abs(shot.depth - expected[:, None])[road] / np.broadcast_to(expected[:, None], road.shape)[road]
    assert np.mean(error < 1e-3) > 0.99  # the rest is kerb


def test_labels_are_known_ids_and_the_sky_has_no_depth():
    for seed in range(3):
        shot = picture(random_style(np.random.default_rng(seed)), seed, turn=float(seed))
        assert set(np.unique(shot.labels)) <= set(CATEGORY_NAMES)
        np.testing.assert_array_equal(shot.labels == 0, np.isinf(shot.depth))
        assert shot.depth.min() > 0


def test_pictures_show_every_class_family():
    seen = set()
    for seed, name in enumerate(("boston", "boston", "singapore", "singapore")):
        seen |= set(np.unique(city_picture(name, seed).labels).tolist())
    families = {CATEGORY_NAMES[label].split(".")[0] for label in seen}
    assert families >= {"flat", "static", "vehicle", "human"}
    assert {DRIVEABLE, SIDEWALK, VEGETATION} <= seen


def test_nights_are_darker_than_days_yet_not_black():
    ratios = []
    for name, seed in (("boston", 0), ("boston", 1), ("singapore", 2), ("singapore", 3)):
        day, night = city_picture(name, seed), city_picture(name, seed, hour="night")
        np.testing.assert_array_equal(day.labels, night.labels)
        ratios.append(night.image.mean() / day.image.mean())
        assert night.image.mean() > 10
        assert night.image.std() > 10
    assert max(ratios) < 1.0  # headlights on a truck close ahead
    assert np.median(ratios) < 0.65


def test_fog_hides_what_is_far_and_spares_what_is_near():
    clear, fog = city_picture(seed=1), city_picture(seed=1, weather="fog")
    far = (clear.depth > 60) & np.isfinite(clear.depth)
    near = (clear.depth < 12) & (clear.labels != DRIVEABLE)
    assert fog.image[far].std(axis=0).mean() < 0.6 * clear.image[far].std(axis=0).mean()
    assert fog.image[near].std(axis=0).mean() > 0.35 * clear.image[near].std(axis=0).mean()


def test_random_pictures_are_neither_flat_nor_blown_out():
    for seed in range(5):
        shot = picture(random_style(np.random.default_rng(seed)), seed)
        assert shot.image.std() > 6
        assert 4 < shot.image.mean() < 248


def test_rng_changes_the_sensor_noise_only():
    style = random_style(np.random.default_rng(3))
    world = World(style, 3, length=60.0)
    pose = camera_pose(*world.lane_pose(10.0))
    first, same, other = (render(world, CAMERA, pose, 1.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, same.image)
    np.testing.assert_array_equal(first.labels, other.labels)
    assert (first.image != other.image).any()
    assert np.abs(first.image.astype(int) - other.image).mean() < 15


def test_sharper_camera_sees_the_same_labels():
    world = World(city_style("boston", rng=np.random.default_rng(4)), 4, length=60.0)
    pose = camera_pose(*world.lane_pose(12.0))
    fine = CameraModel.from_field_of_view(width=600, height=336)
    coarse_labels, fine_labels = (
        render(world, camera, pose, 2.0, np.random.default_rng(0)).labels for camera in (CAMERA, fine)
    )
    np.testing.assert_array_equal(coarse_labels, fine_labels[1::3, 1::3])


def test_moving_objects_move_in_the_picture():
    world = World(city_style("singapore", rng=np.random.default_rng(5)), 5, length=60.0)
    pose = camera_pose(*world.lane_pose(5.0))
    first, later = (render(world, CAMERA, pose, time, np.random.default_rng(0)).labels for time in (0.0, 1.5))
    changed = first != later
    assert 0.001 < changed.mean() < 0.6

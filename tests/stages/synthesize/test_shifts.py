"""The later domains of the benchmark: each is what its shift says, with labels, poses and pictures that agree."""

import json
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from pyquaternion import Quaternion
from xd3d.stages.datasets.labels import IGNORE, get_merge
from xd3d.stages.synthesize import nuscenes_writer
from xd3d.stages.synthesize.camera import CameraModel, camera_pose, render
from xd3d.stages.synthesize.classes import CATEGORY_NAMES, DRIVEABLE, NOISE, SIDEWALK, TERRAIN
from xd3d.stages.synthesize.nuscenes_writer import SceneJob, write_scene
from xd3d.stages.synthesize.plan import BENCHMARK_GROUPS, plan_scenes
from xd3d.stages.synthesize.rigs import LIDAR, LIDARS, rig
from xd3d.stages.synthesize.snow import draw_flakes, ground_cover
from xd3d.stages.synthesize.style_sampling import city_style
from xd3d.stages.synthesize.world import World

DOMAINS = ("streets-haze", "streets-dim", "streets-dusk", "streets-snow", "streets-tilted")
SIZE = (320, 180)
CAMERAS = ("CAM_FRONT", "CAM_BACK_LEFT")


@dataclass(frozen=True)
class Shot:
    """One keyframe of a scene: its points and labels, and of each camera the renderer's output."""

    points: np.ndarray
    labels: np.ndarray
    pictures: dict
    ego_poses: dict  # global_from_ego by channel
    vehicle: str


def matrix(translation, turn):
    pose = Quaternion(turn).transformation_matrix
    pose[:3, 3] = translation
    return pose


def drive(folder, group):
    """Write one keyframe of a group's second scene, or of its first."""
    plans = [plan for plan in plan_scenes(1956, BENCHMARK_GROUPS) if plan.group == group]
    for name in (".parts", f"samples/{LIDAR}", *(f"samples/{name}" for name in CAMERAS), "lidarseg/v1.0-trainval"):
        (folder / name).mkdir(parents=True)
    job = SceneJob(out=folder, plan=replace(plans[1], keyframes=1), seed=0, cameras=CAMERAS, image_size=SIZE)
    pictures, original = [], nuscenes_writer.render
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuscenes_writer, "render", lambda *given: pictures.append(original(*given)) or pictures[-1])
        write_scene(job)
    rows = json.loads(job.rows_path.read_text())
    poses = {row["token"]: matrix(row["translation"], row["rotation"]) for row in rows["ego_pose"]}
    return Shot(
        points=np.fromfile(next(folder.glob("samples/LIDAR_TOP/*")), np.float32).reshape(-1, 5),
        labels=np.fromfile(next(folder.glob("lidarseg/*/*")), np.uint8),
        pictures=dict(zip(CAMERAS, pictures, strict=True)),
        ego_poses={row["filename"].split("/")[1]: poses[row["ego_pose_token"]] for row in rows["sample_data"]},
        vehicle=group.vehicle,
    )


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """A keyframe of each later domain and split."""
    return {
        (group.domain, group.split): drive(tmp_path_factory.mktemp("shot"), group)
        for group in BENCHMARK_GROUPS
        if group.part > 0
    }


def road_plane(shot):
    """The road in the LiDAR frame, near the car: its normal (unit, upwards) and its distance from the origin."""
    near = (shot.labels == DRIVEABLE) & (np.linalg.norm(shot.points[:, :3], axis=1) < 12)
    points = shot.points[near, :3].astype(np.float64)
    normal = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][-1]
    normal *= np.sign(normal[2])
    return normal, -float(points.mean(axis=0) @ normal)


def agreement(shot, channel, *, lidar_pose=None):
    """Projected points, the share of them whose pixel has their depth, and of those the share with their class."""
    car = rig(shot.vehicle, cameras=CAMERAS, image_size=SIZE)
    world_from_camera = shot.ego_poses[channel] @ car.cameras[channel].ego_from_camera
    world_from_lidar = shot.ego_poses[LIDAR] @ (car.ego_from_lidar if lidar_pose is None else lidar_pose)
    hit = shot.labels != NOISE
    points = np.c_[shot.points[hit, :3], np.ones(hit.sum())] @ (np.linalg.inv(world_from_camera) @ world_from_lidar).T
    labels, points = shot.labels[hit], points[:, :3]
    ahead = points[:, 2] > 0.5
    u, v = (points[ahead] @ car.cameras[channel].model.intrinsics.T)[:, :2].T / points[ahead, 2]
    kept = (u > 0) & (u < SIZE[0]) & (v > 0) & (v < SIZE[1])
    pixels, depth, labels = (v[kept].astype(int), u[kept].astype(int)), points[ahead][kept, 2], labels[ahead][kept]
    picture = shot.pictures[channel]
    near = np.abs(picture.depth[pixels] - depth) < 0.03 * depth + 0.1
    return len(depth), near.mean(), (picture.labels[pixels] == labels)[near].mean()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_labels_are_known_ids_and_every_class_occurs(shots, domain, split):
    shot, merge = shots[domain, split], get_merge("nuscenes-6")
    assert set(np.unique(shot.labels)) <= set(CATEGORY_NAMES)
    assert np.isfinite(shot.points).all()
    merged = merge.apply(shot.labels)
    counts = np.bincount(merged[merged != IGNORE], minlength=6)
    assert (counts > 20).all()


@pytest.mark.parametrize("channel", CAMERAS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_points_land_on_pixels_of_their_depth_and_class(shots, domain, channel):
    """The truck's LiDAR stands 1.6 m ahead of its front camera and 1.2 m below it, so it sees other surfaces."""
    for split in ("train", "val"):
        total, near, same = agreement(shots[domain, split], channel)
        assert total > 200
        assert near > (0.8 if domain == "streets-tilted" else 0.85)
        assert same > 0.97


def test_to_leave_the_tilt_of_the_truck_s_lidar_out_is_seen(shots):
    shot, car = shots["streets-tilted", "val"], rig("n111", cameras=CAMERAS, image_size=SIZE)
    straight = car.ego_from_lidar.copy()
    straight[:3, :3] = rig("n008", cameras=CAMERAS, image_size=SIZE).ego_from_lidar[:3, :3]
    assert agreement(shot, "CAM_FRONT", lidar_pose=straight)[1] < agreement(shot, "CAM_FRONT")[1] - 0.3


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_truck_s_lidar_looks_down_on_the_near_street(shots, split):
    shot, lidar = shots["streets-tilted", split], LIDARS["near"]
    normal, height = road_plane(shot)
    assert np.degrees(np.arctan2(normal[1], normal[2])) == pytest.approx(-12, abs=1.5)
    assert height == pytest.approx(1.1, abs=0.1)
    distance = np.linalg.norm(shot.points[:, :3], axis=1)
    assert 35 < distance.max() < 45 + 1
    assert len(np.unique(shot.points[:, 4])) == len(lidar.elevations) == 64
    assert len(shot.points) > 2 * 32 * 1080 * 0.8


def test_the_truck_s_cameras_look_down_from_its_cab():
    truck, car = (rig(name, cameras=CAMERAS, image_size=SIZE) for name in ("n111", "n008"))
    for channel in CAMERAS:
        high, low = truck.cameras[channel].ego_from_camera, car.cameras[channel].ego_from_camera
        assert high[2, 3] - low[2, 3] == pytest.approx(0.8, abs=0.1)
        assert np.degrees(np.arcsin(low[2, 2] - high[2, 2])) == pytest.approx(6, abs=1.5)


@pytest.mark.parametrize("split", ["train", "val"])
def test_siena_s_car_has_forty_beams_that_are_dense_below_the_horizon(shots, split):
    shot, lidar = shots["streets-dusk", split], LIDARS["uneven"]
    gaps = np.diff(np.degrees(lidar.elevations))
    assert gaps.max() > 5 * gaps.min()
    rise = np.degrees(np.arctan2(shot.points[:, 2], np.hypot(shot.points[:, 0], shot.points[:, 1])))
    seen = [np.median(rise[shot.points[:, 4] == ring]) for ring in range(40)]
    np.testing.assert_allclose(seen, np.degrees(lidar.elevations), atol=0.2)
    assert road_plane(shot)[1] == pytest.approx(1.68, abs=0.1)


def test_siena_is_another_city_than_both_others():
    siena, *others = (city_style(name, rng=np.random.default_rng(3)) for name in ("siena", "boston", "singapore"))
    for part in ("layout", "materials", "vegetation", "traffic"):
        ours = vars(getattr(siena, part))
        for other in others:
            theirs = vars(getattr(other, part))
            assert sum(ours[name] != theirs[name] for name in ours) >= 0.7 * len(ours)
    assert not siena.materials.marked
    assert 2 * siena.layout.half_road < min(2 * other.layout.half_road for other in others)


def snowy(weather, seed=4):
    style = city_style("boston", weather=weather, rng=np.random.default_rng(seed))
    return World(style, seed, length=80.0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_flakes_answer_near_the_sensor_and_are_noise(shots, split):
    shot = shots["streets-snow", split]
    flakes = shot.labels == NOISE
    distance = np.linalg.norm(shot.points[:, :3], axis=1)
    assert 0.03 < flakes.mean() < 0.25
    assert np.median(distance[flakes]) < 10
    assert np.quantile(distance[flakes], 0.99) < 40
    assert (shot.points[flakes, 2] > 0.5).sum() > 20  # before the sky, too
    assert (np.unique(shot.points[flakes, 3]) > 5).any()


def test_snow_lies_on_the_ground_but_for_the_tracks_and_shines_in_the_sweep(shots):
    world = snowy("snow")
    x, y = (axis.ravel().astype(np.float32) for axis in np.meshgrid(np.linspace(0, 80, 500), np.linspace(-20, 20, 400)))
    labels = world.ground.classes(x, y)
    cover = ground_cover(world.ground, labels, x, y)
    assert ((cover >= 0) & (cover <= 1)).all()
    white = {label: cover[labels == label].mean() for label in (DRIVEABLE, SIDEWALK, TERRAIN)}
    assert 0.2 < white[DRIVEABLE] < white[SIDEWALK] < white[TERRAIN]
    assert white[TERRAIN] > 0.9
    lane = (np.abs(world.ground.crossing_distance(x)) > 12) & (labels == DRIVEABLE)
    across = np.abs(y - world.ground.centre(x))
    middle = np.abs(across - world.style.layout.lane_width / 2)
    assert cover[lane & (np.abs(middle - 0.78) < 0.15)].mean() < 0.3 < cover[lane & (middle < 0.2)].mean()
    snow, clear = shots["streets-snow", "val"], shots["streets-tilted", "val"]
    bright = [shot.points[shot.labels == TERRAIN, 3].mean() for shot in (snow, clear)]
    assert bright[0] > 1.5 * bright[1] / LIDARS["near"].gain * 1.4


def test_pictures_of_snow_are_whiter_on_the_ground_with_the_same_labels():
    camera = CameraModel.from_field_of_view(width=320, height=180)
    shot = {}
    for weather in ("clear", "snow"):
        world = snowy(weather)
        pose = camera_pose(*world.lane_pose(world.cruise_speed * 2.0), height=1.5)
        shot[weather] = render(world, camera, pose, 2.0, np.random.default_rng(0))
    np.testing.assert_array_equal(shot["clear"].labels, shot["snow"].labels)
    ground = np.isin(shot["snow"].labels, (TERRAIN, SIDEWALK))
    clear, snow = (np.median(shot[weather].image[ground]) for weather in ("clear", "snow"))
    assert snow > max(clear + 15, 150)


def test_flakes_have_many_sizes_and_hide_behind_what_is_nearer():
    intrinsics = CameraModel.from_field_of_view(width=800, height=450).intrinsics
    black, far = np.zeros((450, 800, 3), np.float32), np.full((450, 800), np.inf, np.float32)

    def picture(depth):
        return draw_flakes(black, depth, intrinsics, speed=6.0, light=(1.0, 1.0, 1.0), rng=np.random.default_rng(1))

    found = picture(far)
    _, _, boxes, _ = cv2.connectedComponentsWithStats((found[..., 0] > 0.1).astype(np.uint8))
    areas = boxes[1:, cv2.CC_STAT_AREA]
    assert len(areas) > 200
    assert np.quantile(areas, 0.99) > 8 * np.median(areas)
    assert 0.005 < (found[..., 0] > 0.1).mean() < 0.25
    np.testing.assert_array_equal(picture(np.full_like(far, 0.3)), black)


def test_unlit_nights_have_headlights_and_hardly_any_other_light(shots):
    lit, unlit = (city_style("boston", hour=hour, rng=np.random.default_rng(1)) for hour in ("night", "unlit night"))
    assert unlit.light.lamps == 0 < unlit.light.headlights
    assert unlit.imaging.noise > 2 * lit.imaging.noise
    assert unlit.imaging.blur > 2 * lit.imaging.blur
    for split in ("train", "val"):
        dim = shots["streets-dim", split]
        image = dim.pictures["CAM_FRONT"].image
        assert image.mean() < 60
        assert np.median(image) < 45
        assert len(np.unique(dim.points[:, 4])) == 22

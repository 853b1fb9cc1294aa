"""What the written root says, read back by the official devkit and by transforms of another library."""

import gc
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from pyquaternion import Quaternion
from xd3d.stages.datasets.catalogue import NUSCENES_32

CARS = [index for index, name in enumerate(NUSCENES_32) if name.startswith("vehicle.")]


def matrix(record):
    pose = Quaternion(record["rotation"]).transformation_matrix
    pose[:3, 3] = record["translation"]
    return pose


def global_from_sensor(devkit, data, *, stamp_of=None):
    """Pose of a sensor; ``stamp_of`` takes the ego pose of another sensor's stamp instead of its own."""
    pose = matrix(devkit.get("ego_pose", (stamp_of or data)["ego_pose_token"]))
    return pose @ matrix(devkit.get("calibrated_sensor", data["calibrated_sensor_token"]))


def sweep(devkit, sample):
    """LiDAR record, points [P, 4] homogeneous in the LiDAR frame, labels [P]."""
    record = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    points = np.fromfile(devkit.get_sample_data_path(record["token"]), np.float32).reshape(-1, 5)
    labels = np.fromfile(f"{devkit.dataroot}/{devkit.get('lidarseg', record['token'])['filename']}", np.uint8)
    return record, np.c_[points[:, :3], np.ones(len(points))].astype(np.float64), labels


def project(devkit, sample, channel, *, ego_motion=True):
    """Columns, rows and depths of the points inside the picture, and which points they are."""
    lidar, points, labels = sweep(devkit, sample)
    camera = devkit.get("sample_data", sample["data"][channel])
    chain = np.linalg.inv(global_from_sensor(devkit, camera, stamp_of=None if ego_motion else lidar))
    seen = points @ (chain @ global_from_sensor(devkit, lidar))[:3].T
    intrinsics = np.array(devkit.get("calibrated_sensor", camera["calibrated_sensor_token"])["camera_intrinsic"])
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = (seen @ intrinsics.T)[:, :2].T / seen[:, 2]
    kept = (seen[:, 2] > 0.5) & (u > 0) & (u < camera["width"]) & (v > 0) & (v < camera["height"])
    return u[kept], v[kept], seen[kept, 2], labels[kept]


def agreement(devkit, city, *, ego_motion=True):
    """Share of projected points whose pixel has their class, and of those whose depth agrees the same share."""
    same, matched, same_where_matched, total = 0, 0, 0, 0
    for sample in devkit.sample:
        for channel in ("CAM_FRONT", "CAM_BACK_LEFT"):
            picture = city.pictures[sample["data"][channel]]
            u, v, depth, labels = project(devkit, sample, channel, ego_motion=ego_motion)
            pixels = v.astype(int), u.astype(int)
            same_class = picture.labels[pixels] == labels
            near = np.abs(picture.depth[pixels] - depth) < 0.03 * depth + 0.1
            total += len(labels)
            same += same_class.sum()
            matched += near.sum()
            same_where_matched += (same_class & near).sum()
    return same / total, matched / total, same_where_matched / matched


def test_points_land_on_pixels_of_their_class_and_depth(devkit, city):
    same, matched, same_where_matched = agreement(devkit, city)
    assert same > 0.93
    assert matched > 0.93
    assert same_where_matched > 0.985


def test_leaving_the_ego_motion_out_is_seen(devkit, city):
    assert agreement(devkit, city, ego_motion=False)[1] < agreement(devkit, city)[1] - 0.02


def test_projection_agrees_with_the_devkit(devkit):
    sample = devkit.sample[0]
    points, _, image = devkit.explorer.map_pointcloud_to_image(
        sample["data"]["LIDAR_TOP"], sample["data"]["CAM_FRONT"], min_dist=0.5
    )
    u, v, depth, _ = project(devkit, sample, "CAM_FRONT")
    width, height = image.size
    image.close()
    inside = (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1)
    np.testing.assert_allclose(points[:2], [u[inside], v[inside]], atol=0.02)
    assert len(depth) > 500


def test_pictures_on_disk_are_the_rendered_ones(devkit, city):
    for token, picture in city.pictures.items():
        record = devkit.get("sample_data", token)
        with Image.open(devkit.get_sample_data_path(token)) as image:
            stored = np.asarray(image, np.float64)
        assert stored.shape == (record["height"], record["width"], 3)
        assert np.abs(stored - picture.image).mean() < 6


def test_sensors_have_stamps_and_poses_of_their_own(devkit):
    for sample in devkit.sample:
        lidar, front = (devkit.get("sample_data", sample["data"][name]) for name in ("LIDAR_TOP", "CAM_FRONT"))
        seconds = (lidar["timestamp"] - front["timestamp"]) / 1e6
        assert 0 < seconds < 0.2
        moved = np.subtract(*(devkit.get("ego_pose", r["ego_pose_token"])["translation"] for r in (lidar, front)))
        assert 1 < np.linalg.norm(moved) / seconds < 20
        assert sample["timestamp"] == lidar["timestamp"]


def test_boxes_hold_the_points_they_count_and_of_their_class(devkit):
    from nuscenes.utils.geometry_utils import points_in_box

    right, total = 0, 0
    for sample in devkit.sample:
        lidar, points, labels = sweep(devkit, sample)
        points = (points @ global_from_sensor(devkit, lidar).T)[:, :3]
        for token in sample["anns"]:
            inside = points_in_box(devkit.get_box(token), points.T)
            row = devkit.get("sample_annotation", token)
            assert abs(inside.sum() - row["num_lidar_pts"]) <= 1  # a point on a face may fall on either side
            right += (labels[inside] == NUSCENES_32.index(row["category_name"])).sum()
            total += inside.sum()
    assert right / total > 0.9


def test_points_of_vehicles_lie_in_boxes(devkit):
    from nuscenes.utils.geometry_utils import points_in_box

    boxed, total = 0, 0
    for sample in devkit.sample:
        lidar, points, labels = sweep(devkit, sample)
        points = (points @ global_from_sensor(devkit, lidar).T)[np.isin(labels, CARS), :3]
        # Room for noise of the range, and for how far a vehicle drives during a spin.
        inside = [points_in_box(devkit.get_box(token), points.T, wlh_factor=1.2) for token in sample["anns"]]
        boxed += np.any(inside, axis=0).sum()
        total += len(points)
    assert total > 1000
    assert boxed / total > 0.97


def test_rows_are_linked_in_time(devkit):
    for scene in devkit.scene:
        token, stamps = scene["first_sample_token"], []
        while token:
            sample = devkit.get("sample", token)
            stamps.append(sample["timestamp"])
            last, token = token, sample["next"]
        assert last == scene["last_sample_token"]
        assert len(stamps) == scene["nbr_samples"]
        assert all(abs(later - sooner - 500_000) < 5000 for sooner, later in pairwise(stamps))
    for table in ("sample_data", "sample_annotation"):
        for row in getattr(devkit, table):
            assert not row["next"] or devkit.get(table, row["next"])["prev"] == row["token"]
    for row in devkit.sample_data:
        assert not row["next"] or devkit.get("sample_data", row["next"])["timestamp"] > row["timestamp"]
    for instance in devkit.instance:
        token, count = instance["first_annotation_token"], 0
        while token:
            row = devkit.get("sample_annotation", token)
            assert row["instance_token"] == instance["token"]
            token, count = row["next"], count + 1
        assert count == instance["nbr_annotations"]


def test_there_is_a_sweep_between_keyframes_and_the_devkit_joins_them(devkit):
    from nuscenes.utils.data_classes import LidarPointCloud

    between = [row for row in devkit.sample_data if not row["is_key_frame"]]
    assert len(between) == sum(scene["nbr_samples"] - 1 for scene in devkit.scene)
    sample = devkit.get("sample", between[0]["sample_token"])
    single = LidarPointCloud.from_file(devkit.get_sample_data_path(sample["data"]["LIDAR_TOP"]))
    joined, _ = LidarPointCloud.from_file_multisweep(devkit, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=2)
    assert joined.nbr_points() > 1.5 * single.nbr_points()


def test_cars_differ_between_the_cities(devkit):
    by_vehicle = {}
    for row in devkit.sample_data:
        scene = devkit.get("scene", devkit.get("sample", row["sample_token"])["scene_token"])
        vehicle = devkit.get("log", scene["log_token"])["vehicle"]
        mounted = devkit.get("calibrated_sensor", row["calibrated_sensor_token"])
        values = str([mounted["translation"], mounted["rotation"], mounted["camera_intrinsic"]])
        by_vehicle.setdefault((vehicle, row["channel"]), set()).add(values)
    assert all(len(found) == 1 for found in by_vehicle.values())
    assert by_vehicle["n008", "CAM_FRONT"] != by_vehicle["n015", "CAM_FRONT"]
    assert by_vehicle["n008", "LIDAR_TOP"] != by_vehicle["n015", "LIDAR_TOP"]


def test_road_and_sidewalk_points_lie_on_the_map_mask(devkit):
    for sample in devkit.sample[::4]:
        lidar, points, labels = sweep(devkit, sample)
        x, y = (points @ global_from_sensor(devkit, lidar).T)[:, :2].T
        log = devkit.get("log", devkit.get("scene", sample["scene_token"])["log_token"])
        on_mask = devkit.get("map", log["map_token"])["mask"].is_on_mask(x, y)
        assert on_mask[np.isin(labels, (24, 26))].mean() > 0.97
        assert on_mask[labels == 27].mean() < 0.05


def test_descriptions_name_the_night(devkit):
    for scene in devkit.scene:
        night = devkit.get("log", scene["log_token"])["location"] == "singapore-hollandvillage"
        assert ("night" in scene["description"].lower()) == night


@pytest.mark.parametrize("name", ["test_num_classes", "test_num_colors", "test_classes"])
def test_the_devkits_own_lidarseg_checks_pass(devkit, name):
    from nuscenes.tests.test_lidarseg import TestNuScenesLidarseg

    checks = TestNuScenesLidarseg(name)
    checks.nusc = devkit
    getattr(checks, name)()


def test_the_devkits_evaluation_gives_perfect_predictions_a_perfect_score(devkit, city, tmp_path, monkeypatch):
    from nuscenes.eval.lidarseg import evaluate, utils
    from nuscenes.utils.splits import create_splits_scenes

    present = {scene["name"] for scene in devkit.scene}
    official = {split: [n for n in names if n in present] for split, names in create_splits_scenes().items()}
    monkeypatch.setattr(utils, "create_splits_scenes", lambda **_: official)
    folder = tmp_path / "lidarseg" / "val"
    folder.mkdir(parents=True)
    mapper = utils.LidarsegClassMapper(devkit)
    for row in devkit.lidarseg:
        labels = mapper.convert_label(np.fromfile(city.root / row["filename"], np.uint8))
        np.maximum(labels, 1).astype(np.uint8).tofile(folder / f"{row['token']}_lidarseg.bin")
    result = evaluate.LidarSegEval(devkit, str(tmp_path), "val").evaluate()
    assert result["miou"] == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # the devkit on numpy 1.26
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves pictures open
def test_the_devkits_explorer_draws_and_counts(devkit, tmp_path, capsys):
    sample = devkit.sample[0]
    devkit.get_sample_lidarseg_stats(sample["token"])
    assert "flat.driveable_surface" in capsys.readouterr().out
    pictures = [tmp_path / "image.png", tmp_path / "above.png"]
    shown = {"show_lidarseg": True, "verbose": False}
    devkit.render_pointcloud_in_image(sample["token"], **shown, out_path=str(pictures[0]))
    devkit.render_sample_data(sample["data"]["LIDAR_TOP"], **shown, out_path=str(pictures[1]))
    assert all(path.stat().st_size > 10_000 for path in pictures)
    gc.collect()

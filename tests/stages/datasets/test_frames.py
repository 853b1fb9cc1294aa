"""One frame: which points are kept and where they lie, against the devkit's own projection; and damaged files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets.frames import count_labels, load_frame
from xd3d.stages.datasets.labels import IGNORE, get_merge
from xd3d.stages.datasets.nuscenes import CAMERAS, build_index
from xd3d.stages.datasets.projection import project

MERGE = get_merge("nuscenes-6")


def devkit_pixels(root: Path, version: str, sample: str, camera: str) -> np.ndarray:
    """Pixels of the points that the devkit shows in an image, in the order of the sweep.

    The devkit keeps points more than one pixel inside the border; a minimal depth is asked of it as near to ours as it
    can be.
    """
    from nuscenes.nuscenes import NuScenes

    devkit = NuScenes(version=version, dataroot=str(root), verbose=False)
    data = devkit.get("sample", sample)["data"]
    pixels, _, image = devkit.explorer.map_pointcloud_to_image(data["LIDAR_TOP"], data[camera], min_dist=1e-9)
    image.close()
    return pixels[:2].T


def border(pixels: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Distance of each pixel from the nearest side of the image."""
    return np.minimum(pixels, size - pixels).min(axis=1)


def agrees_with_devkit(root: Path, version: str, camera: str) -> int:
    index = build_index(root, version=version, cameras=[camera])
    frame = load_frame(index, 0, MERGE)
    size = index.images.size[0]
    expected = devkit_pixels(root, version, str(index.frames.key[0]), camera)
    ours = frame.projection_uv * size
    # Rounding in float32, the devkit's and ours, decides for points within a hundredth of the devkit's border.
    clear = border(ours, size) > 1.01
    assert abs(len(expected) - clear.sum()) <= 3
    expected = expected[border(expected, size) > 1.01]
    assert len(expected) == clear.sum()
    np.testing.assert_allclose(ours[clear], expected, atol=0.05)
    return len(ours)


def test_real_frame_keeps_3067_front_points_where_the_devkit_puts_them(real_nuscenes):
    assert agrees_with_devkit(real_nuscenes, "v1.0-mini", "CAM_FRONT") == 3067


@pytest.mark.parametrize("camera", ["CAM_BACK", "CAM_FRONT_LEFT"])
def test_other_cameras_agree_with_the_devkit(tiny_nuscenes_root, camera):
    assert agrees_with_devkit(tiny_nuscenes_root, "v1.0-trainval", camera) > 50


def test_leaving_ego_motion_out_moves_the_real_points_as_measured(real_nuscenes):
    from nuscenes.nuscenes import NuScenes

    index = build_index(real_nuscenes)
    frame = load_frame(index, 0, MERGE)
    devkit = NuScenes(version="v1.0-mini", dataroot=str(real_nuscenes), verbose=False)
    data = devkit.sample[0]["data"]
    with_motion = frame.projection_uv * index.images.size[0]
    without, _ = project(frame.points, camera_from_lidar_at_rest(devkit, data), index.images.intrinsics[0])
    moved = np.linalg.norm(without - with_motion, axis=1)
    assert round(float(np.median(moved)), 1) == 13.6
    assert round(float(moved.max()), 1) == 65.8


def camera_from_lidar_at_rest(devkit, data) -> np.ndarray:
    """The chain of a car that stands still: both sensors share one ego frame."""
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    def ego_from_sensor(channel):
        sensor = devkit.get("calibrated_sensor", devkit.get("sample_data", data[channel])["calibrated_sensor_token"])
        return transform_matrix(sensor["translation"], Quaternion(sensor["rotation"]))

    return np.linalg.inv(ego_from_sensor("CAM_FRONT")) @ ego_from_sensor("LIDAR_TOP")


def test_a_point_between_two_real_cameras_has_two_projections(real_nuscenes):
    index = build_index(real_nuscenes, cameras="all")
    frame = load_frame(index, 0, MERGE)
    single = [load_frame(build_index(real_nuscenes, cameras=[name]), 0, MERGE) for name in CAMERAS]
    assert len(frame.image_rows) == 6
    assert len(frame.projection_point) == sum(len(one.points) for one in single)
    assert len(frame.points) == len(np.unique(np.concatenate([one.source_rows for one in single])))
    assert len(frame.points) < len(frame.projection_point)
    for view, one in enumerate(single):
        chosen = frame.projection_view == view
        np.testing.assert_array_equal(frame.source_rows[frame.projection_point[chosen]], one.source_rows)
        np.testing.assert_array_equal(frame.projection_uv[chosen], one.projection_uv)


def test_kept_points_and_labels_are_rows_of_the_files(tiny_nuscenes_root):
    index = build_index(tiny_nuscenes_root)
    frame = load_frame(index, 3, MERGE)
    sweep = np.fromfile(tiny_nuscenes_root / str(index.frames.sweep[3]), np.float32).reshape(-1, 5)
    raw = np.fromfile(tiny_nuscenes_root / str(index.frames.labels[3]), np.uint8)
    np.testing.assert_array_equal(frame.points, sweep[frame.source_rows, :3])
    np.testing.assert_array_equal(frame.labels, MERGE.apply(raw[frame.source_rows]))
    np.testing.assert_array_equal(frame.projection_point, np.arange(len(frame.points)))
    assert np.all((frame.projection_uv > 0) & (frame.projection_uv < 1))


def test_projection_by_hand():
    intrinsics = np.array([[100.0, 0, 50], [0, 200, 30], [0, 0, 1]])
    camera_from_lidar = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, -1], [0, 0, 0, 1]])
    points = np.array([[1, 5, -2], [0, 1, 0], [0, -4, 0]], np.float32)
    pixels, depth = project(points, camera_from_lidar, intrinsics)
    np.testing.assert_allclose(depth, [4, 0, -5])
    np.testing.assert_allclose(pixels[0], [100 * 1 / 4 + 50, 200 * 2 / 4 + 30])
    assert np.isnan(pixels[1:]).all()


def test_points_below_a_camera_that_looks_straight_down_face_the_top_of_its_image(tiny_nuscenes_root):
    index = build_index(tiny_nuscenes_root)
    down = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]])
    poses = np.broadcast_to(down, index.images.camera_from_lidar.shape)
    index = replace(index, images=replace(index.images, camera_from_lidar=poses))
    frame = load_frame(index, 0, None, every_point=True)
    np.testing.assert_array_equal(frame.facing(index), frame.points[:, [1, 0, 2]] * [-1, 1, 1])


def test_a_frame_without_labels_is_ignored_throughout(broken_root):
    root = broken_root()
    (root / "v1.0-trainval/lidarseg.json").write_text("[]")
    scenes = root / "v1.0-trainval/scene.json"
    rows = json.loads(scenes.read_text())
    of_test = [{**row, "name": f"scene-{number:04d}"} for number, row in enumerate(rows, 77)]
    scenes.write_text(json.dumps(of_test))
    frame = load_frame(build_index(root), 0, MERGE)
    assert len(frame.points)
    assert (frame.labels == IGNORE).all()


def test_an_empty_view_gives_an_empty_frame(broken_root):
    root = broken_root()
    index = build_index(root)
    path = root / str(index.frames.sweep[0])
    sweep = np.fromfile(path, np.float32).reshape(-1, 5)
    sweep[:, 1] = -np.abs(sweep[:, 1]) - 10  # behind the front camera
    sweep.tofile(path)
    frame = load_frame(index, 0, MERGE)
    assert frame.points.shape == (0, 3)
    assert frame.projection_uv.shape == (0, 2)


def test_label_counts_are_those_of_the_kept_points(tiny_nuscenes_root):
    index = build_index(tiny_nuscenes_root)
    counts = count_labels(index, [0, 1], MERGE)
    labels = np.concatenate([load_frame(index, row, MERGE).labels for row in (0, 1)])
    assert counts.tolist() == [int((labels == number).sum()) for number in range(6)]


@pytest.fixture
def damaged(broken_root):
    index = build_index(broken_root())
    return index, index.root / str(index.frames.sweep[0]), index.root / str(index.frames.labels[0])


def test_a_label_file_of_another_length_names_both_numbers(damaged):
    index, _, labels = damaged
    labels.write_bytes(labels.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"593 labels, .* 600 points") as caught:
        load_frame(index, 0, MERGE)
    assert labels.name in str(caught.value)


def test_a_truncated_sweep_names_its_bytes(damaged):
    index, sweep, _ = damaged
    sweep.write_bytes(sweep.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"11997 bytes.*of 20") as caught:
        load_frame(index, 0, MERGE)
    assert sweep.name in str(caught.value)


def test_a_label_out_of_range_names_the_file_and_the_value(damaged):
    index, _, labels = damaged
    labels.write_bytes(b"\x63" + labels.read_bytes()[1:])
    with pytest.raises(DataError, match="Label 99") as caught:
        load_frame(index, 0, MERGE)
    assert labels.name in str(caught.value)


def test_points_without_coordinates_are_dropped_with_their_labels_and_counted(damaged):
    index, sweep, labels = damaged
    whole = load_frame(index, 0, MERGE)
    points, raw = np.fromfile(sweep, np.float32).reshape(-1, 5), np.fromfile(labels, np.uint8)
    bad = whole.source_rows[[0, 7, 9]]
    points[bad[0], 0], points[bad[1], 2], points[bad[2], 1] = np.nan, -np.inf, 3e38
    raw[bad[0]] = 99
    points.tofile(sweep)
    raw.tofile(labels)
    frame = load_frame(index, 0, MERGE)
    assert frame.dropped == 3
    kept = ~np.isin(whole.source_rows, bad)
    for name in ("points", "labels", "source_rows", "projection_uv"):
        np.testing.assert_array_equal(getattr(frame, name), getattr(whole, name)[kept])
    every = load_frame(index, 0, MERGE, every_point=True)
    assert len(every.points) == 597
    assert np.isfinite(every.points).all()
    points[:, 0] = np.nan
    points.tofile(sweep)
    with pytest.raises(DataError, match="its 600 points") as caught:
        load_frame(index, 0, MERGE)
    assert sweep.name in str(caught.value)


@pytest.mark.parametrize("which", [1, 2])
def test_a_file_that_went_missing_is_named(damaged, which):
    damaged[which].unlink()
    with pytest.raises(MissingDataError, match="xd3d prepare") as caught:
        load_frame(damaged[0], 0, MERGE)
    assert damaged[which].name in str(caught.value)


def test_a_real_image_holds_the_pixels_that_the_index_promises(real_nuscenes):
    index = build_index(real_nuscenes)
    with Image.open(real_nuscenes / str(index.images.path[0])) as image:
        assert image.size == tuple(index.images.size[0])

"""A calibration that shows the points of another place is found by `prepare`, with the reading that would be right."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from xd3d.errors import ConfigError, DataError
from xd3d.stages.datasets import folder, semantickitti
from xd3d.stages.datasets.alignment import measure_alignment
from xd3d.stages.datasets.prepare import prepare_dataset

SIZE = (320, 200)
K = np.array([[200.0, 0, 160], [0, 200, 100], [0, 0, 1]])
POSE = np.array([[0, -1.0, 0, 0.06], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]])
BEHIND = np.array([[0, 1.0, 0, 0], [0, 0, -1, 0], [-1, 0, 0, -0.3], [0, 0, 0, 1]])
BODY = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def street(front_only=False):
    """Ground, walls and a car around a LiDAR 1.7 m above the ground."""
    rng = np.random.default_rng(3)
    ground = np.c_[rng.uniform(-50, 50, 3000), rng.uniform(-9, 9, 3000), np.full(3000, -1.7)]
    walls = np.c_[rng.uniform(-50, 50, 2000), rng.choice([-9.0, 9], 2000), rng.uniform(-1.7, 5, 2000)]
    points = np.concatenate([ground, walls])
    points = points[np.linalg.norm(points, axis=1) > 2.5]
    return points[points[:, 0] > 2.5] if front_only else points


@pytest.fixture
def prepare(tmp_path):
    """Call it with the cameras' transforms for what `prepare` says of a folder of two scenes."""

    def run(front_only=(), cameras=None, picture=None, **poses):
        for scene in ("a", "b"):
            (tmp_path / "scans" / scene).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "scans" / scene / "0.npy", street(scene in front_only).astype(np.float32))
            for camera in poses:
                (tmp_path / camera / scene).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", SIZE, "grey").save(tmp_path / camera / scene / "0.png")
        entries = {
            camera: {"intrinsics": K.tolist(), "camera_from_lidar": np.asarray(pose).tolist()}
            for camera, pose in poses.items()
        }
        (tmp_path / "calibration.json").write_text(json.dumps(entries))
        about = {
            "sweeps": "scans/{scene}/{frame}.npy",
            "images": {camera: f"{camera}/{{scene}}/{{frame}}.png" for camera in poses},
            "calibration": "calibration.json",
            "classes": {"road": 1},
        }
        (tmp_path / "dataset.yaml").write_text(json.dumps(about))
        return prepare_dataset("folder", tmp_path, tmp_path / "index", cameras=cameras, picture=picture)

    return run


def test_each_camera_sees_the_points_that_a_plain_projection_puts_in_its_image(prepare, caplog):
    views = prepare(front=POSE, back=BEHIND).views
    points = street()
    for view in views:
        pose = {"front": POSE, "back": BEHIND}[view.camera]
        x, y, z = K @ (pose[:3, :3] @ points.T + pose[:3, 3:])
        inside = (z > 0) & (x / z > 0) & (x / z < SIZE[0]) & (y / z > 0) & (y / z < SIZE[1])
        assert view.seen == inside.sum() > 0.05 * len(points)
    assert [(view.scene, view.camera) for view in views] == [(s, c) for s in "ab" for c in ("front", "back")]
    assert not caplog.messages


CONVENTIONS = {
    "millimetres": (lambda pose: np.c_[pose[:, :3], pose[:, 3] * [1000, 1000, 1000, 1]], r"no point.*millimetres"),
    "millimetres ahead": (lambda pose: np.c_[pose[:, :3], pose[:, 3] * [-1000, -1000, -1000, 1]], r"\d m away.*millim"),
    "axes of a body": (lambda pose: BODY @ pose, r"no point.*x forward, y left, z up"),
    "inverse": (np.linalg.inv, r"rolled by \d+ degrees.*inverted"),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_transform_of_another_convention_is_refused_by_name(prepare, tmp_path, name):
    change, facts = CONVENTIONS[name]
    with pytest.raises(DataError, match=facts) as caught:
        prepare(front=change(POSE))
    assert "calibration" in str(caught.value)
    assert "front" in str(caught.value)
    assert not (tmp_path / "index").exists()


def test_a_camera_that_sees_nothing_anywhere_is_named_and_may_be_left_out(prepare):
    with pytest.raises(DataError, match=r"camera back.*--cameras"):
        prepare(front=POSE, back=BEHIND, front_only=("a", "b"))
    assert {view.camera for view in prepare(front=POSE, back=BEHIND, front_only=("a", "b"), cameras="front").views} == {
        "front"
    }


def test_a_camera_that_sees_nothing_in_one_scene_is_a_warning(prepare, caplog):
    summary = prepare(front=POSE, back=BEHIND, front_only=("b",))
    assert summary.index is not None
    (message,) = caplog.messages
    assert "back in scene b" in message


def test_a_camera_far_from_the_lidar_is_a_warning(prepare, caplog):
    far = POSE.copy()
    far[2, 3] = -27
    assert prepare(front=far).index is not None
    (message,) = caplog.messages  # one for both scenes
    assert "27 m" in message
    assert "other scenes: 1" in message


def test_a_camera_mounted_upside_down_is_a_warning(prepare, caplog):
    assert prepare(front=np.diag([-1.0, -1, 1, 1]) @ POSE).index is not None
    assert "180 degrees" in caplog.messages[0]


def test_real_calibrations_raise_neither_error_nor_warning(real_data, tmp_path, caplog):
    for dataset, root, share in (
        ("nuscenes", "nuscenes", 3_067 / 34_688),
        ("semantickitti", "kitti_object", None),
        ("folder", "pandaset_sensors", None),
    ):
        views = prepare_dataset(dataset, real_data / root, tmp_path / dataset).views
        assert views
        assert share is None or views[0].share == pytest.approx(share)
    assert not caplog.messages


@pytest.fixture
def boards(tmp_path):
    """Call it with the pixels (right, down) by which the images of boards before a wall are shifted."""

    def make(right, down, scale=None):
        rng = np.random.default_rng(5)
        around, up = np.meshgrid(np.linspace(-0.6, 0.6, 400), np.linspace(-0.35, 0.35, 60))
        rays = np.stack([np.ones(around.size), np.tan(around).ravel(), np.tan(up).ravel()], axis=1)
        for frame in range(4):
            points, picture = rays * 25, np.full((*SIZE[::-1], 3), 90, np.uint8)
            for _ in range(6):
                y, z = rng.uniform(-4, 4), rng.uniform(-2, 1)
                board = (np.abs(rays[:, 1] * 8 - y) < 0.5) & (np.abs(rays[:, 2] * 8 - z) < 0.8)
                points[board] = rays[board] * 8
                corners = (K @ (POSE[:3, :3] @ [[8, 8], [y + 0.5, y - 0.5], [z + 0.8, z - 0.8]] + POSE[:3, 3:])).T
                first, last = np.rint(corners[:, :2] / corners[:, 2:] + [right, down]).astype(int).tolist()
                cv2.rectangle(picture, first, last, rng.integers(120, 255, 3).tolist(), -1)
            for kind in ("scans", "images"):
                (tmp_path / kind).mkdir(exist_ok=True)
            np.save(tmp_path / "scans" / f"{frame}.npy", points.astype(np.float32))
            stored = picture if scale is None else picture[..., 0].astype(np.uint16) * scale
            Image.fromarray(stored).save(tmp_path / "images" / f"{frame}.png")
        entry = {"front": {"intrinsics": K.tolist(), "camera_from_lidar": POSE.tolist()}}
        (tmp_path / "calibration.json").write_text(json.dumps(entry))
        about = {
            "sweeps": "scans/{frame}.npy",
            "images": {"front": "images/{frame}.png"},
            "calibration": "calibration.json",
            "classes": {"road": 1},
        }
        (tmp_path / "dataset.yaml").write_text(json.dumps(about))
        return prepare_dataset("folder", tmp_path, tmp_path / "index")

    return make


@pytest.mark.parametrize(("right", "down"), [(0, 0), (9, 0), (-6, 5)])
def test_edges_tell_by_how_many_pixels_a_projection_is_off(boards, caplog, right, down):
    (found,) = boards(right, down).alignments
    assert found.clear
    assert found.fits is (right == down == 0)
    np.testing.assert_allclose(found.shift, (right, down), atol=2)
    assert len(caplog.messages) == (right != 0)
    assert right == 0 or f"{abs(found.shift[0]):.0f} pixels" in caplog.messages[0]


def test_images_of_16_bits_have_the_same_edges_and_those_of_12_are_told_to_be_dark(boards, caplog):
    (found,) = boards(0, 0, scale=257).alignments
    assert found.fits
    assert not caplog.messages
    boards(0, 0, scale=16)
    assert "camera front has no value above" in caplog.text


@pytest.mark.parametrize("dataset", [folder, semantickitti])
def test_a_degree_of_yaw_is_found_in_real_images(real_data, dataset):
    index = dataset.build_index(real_data / ("pandaset_sensors" if dataset is folder else "kitti_object"))
    (found,) = measure_alignment(index)
    assert found.clear
    assert found.fits
    yaw = np.eye(4)
    yaw[:3, :3] = cv2.Rodrigues(np.array([0, np.radians(1.0), 0]))[0]
    images = dataclasses.replace(index.images, camera_from_lidar=yaw @ index.images.camera_from_lidar)
    (found,) = measure_alignment(dataclasses.replace(index, images=images))
    assert found.clear
    assert not found.fits
    assert found.shift[0] == pytest.approx(-np.tan(np.radians(1.0)) * index.images.intrinsics[0, 0, 0], rel=0.4)


def test_images_without_edges_tell_nothing(prepare):
    assert not any(found.clear for found in prepare(front=POSE).alignments)


def test_the_picture_shows_near_points_red_and_far_ones_blue_where_they_project(prepare, tmp_path):
    path = tmp_path / "points.png"
    prepare(front=POSE, back=BEHIND, picture=path)
    image = np.asarray(Image.open(path)).astype(int)
    assert image.shape[1] == 2 * 960
    points = street()
    in_camera = POSE[:3, :3] @ points.T + POSE[:3, 3:]
    x, y, depth = *(K @ in_camera)[:2] / in_camera[2], in_camera[2]
    shown = (depth > 0) & (x > 0) & (x < SIZE[0] - 1) & (y > 0) & (y < SIZE[1] - 1)
    columns, rows = (np.array([x, y])[:, shown] * 3).astype(int)
    red, _, blue = image[rows + image.shape[0] // 2 - 600, columns].T
    near, far = depth[shown] < 5, depth[shown] > 40
    assert (red[near] > blue[near]).mean() > 0.9
    assert (blue[far] > red[far]).mean() > 0.6


def test_a_refused_calibration_is_drawn_too(prepare, tmp_path):
    with pytest.raises(DataError):
        prepare(front=BODY @ POSE, picture=tmp_path / "points.jpg")
    with Image.open(tmp_path / "points.jpg") as picture:
        assert picture.format == "JPEG"


def test_there_is_no_picture_without_images(prepare, tmp_path):
    with pytest.raises(ConfigError, match="--picture"):
        prepare(picture=tmp_path / "points.png")

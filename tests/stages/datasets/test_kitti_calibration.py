"""Calibrations are refused when they cannot be what they claim, and KITTI's are read in each benchmark's form."""

import json

import numpy as np
import pytest
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets.calibration_checks import intrinsics_fault, pose_fault, size_fault
from xd3d.stages.datasets.folder_calibration import read_folder_calibration
from xd3d.stages.datasets.kitti_calibration import read_calibration, read_kitti_calibration

K = np.array([[700.0, 0, 620], [0, 710, 180], [0, 0, 1]])
POSE = np.array([[0, -1.0, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]])
SIZE = (1240, 375)


def tilted(angle):
    cos, sin = np.cos(angle), np.sin(angle)
    pose = POSE.copy()
    pose[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ POSE[:3, :3]
    return pose


def with_entry(matrix, row, column, value):
    changed = matrix.copy()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("pose", "facts"),
    [
        (POSE.T, ["0.1 -0.2 -0.3 1", "0 0 0 1", "transposed"]),
        (with_entry(POSE, 3, 3, 1000), ["0 0 0 1000"]),
        (POSE * [[1000], [1000], [1000], [1]], ["scales by 1000"]),
        (POSE * [[-1], [1], [1], [1]], ["-1"]),
        (with_entry(POSE, 0, 0, 0.1), ["0.1"]),
        (with_entry(POSE, 2, 0, 0), ["inverted"]),
        (with_entry(POSE, 2, 3, np.nan), ["nan"]),
    ],
)
def test_a_transform_that_is_not_rigid_is_reported(pose, facts):
    fault = pose_fault(pose)
    assert fault is not None
    assert [fact for fact in facts if fact not in fault] == []


def test_a_rotation_rounded_to_three_decimals_is_one():
    for angle in np.linspace(-3, 3, 50):
        assert pose_fault(tilted(angle).round(3)) is None


@pytest.mark.parametrize(
    ("matrix", "facts"),
    [
        (K.T, ["transposed"]),
        (with_entry(K, 0, 0, -700), ["-700"]),
        (with_entry(K, 1, 0, 3), ["3"]),
        (with_entry(K, 0, 1, 620), ["620"]),
        (with_entry(K, 2, 2, 2), ["0 0 2", "0 0 1"]),
        (K * 0, ["inverted", "never calibrated"]),
    ],
)
def test_intrinsics_of_another_form_are_reported(matrix, facts):
    fault = intrinsics_fault(matrix)
    assert fault is not None
    assert [fact for fact in facts if fact not in fault] == []


@pytest.mark.parametrize(
    ("matrix", "size"),
    [
        (K, (620, 188)),  # images at half size
        (K, (2480, 750)),  # images at twice the size
        (K, (375, 1240)),
        (np.array([[1266.0, 0, 816], [0, 1266, 441], [0, 0, 1]]), (900, 1600)),  # turned by a quarter
        (with_entry(with_entry(K, 0, 0, 4.2), 1, 1, 4.2), SIZE),  # millimetres
        (with_entry(with_entry(K, 0, 0, 0.56), 0, 2, 0.5), SIZE),  # fractions of the width
        (with_entry(K, 1, 1, 70), SIZE),
        (with_entry(K, 0, 2, -3), SIZE),
    ],
)
def test_intrinsics_of_other_images_are_reported_with_the_size(matrix, size):
    assert intrinsics_fault(matrix) is None
    assert f"{size[0]}x{size[1]}" in str(size_fault(matrix, size))


@pytest.mark.parametrize(
    ("focal", "centre", "size"),
    [
        ((1266, 1266), (816, 491), (1600, 900)),
        ((300, 300), (640, 512), (1280, 1024)),  # fisheye
        ((8000, 8000), (960, 640), (1920, 1280)),  # telephoto
        ((364, 910), (312, 230), (640, 480)),  # resized to another aspect ratio
        ((721, 721), (610, 20), (1242, 222)),  # the sky cut off
        ((2262, 2265), (1096, 513), (2048, 1024)),
    ],
)
def test_cameras_that_exist_are_plausible(focal, centre, size):
    assert size_fault(np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1.0]]), size) is None


def write(path, **changes):
    entry = {"intrinsics": K.tolist(), "camera_from_lidar": POSE.tolist(), **changes}
    path.write_text(json.dumps({"front": entry}))
    return path


@pytest.mark.parametrize("key", ["intrinsic_matrix", "extrinsics", "T_cam_lidar"])
def test_an_unknown_key_is_reported_with_those_that_are_known(tmp_path, key):
    with pytest.raises(DataError, match=f"front.*'{key}'.*'intrinsics', 'camera_from_lidar' .*'lidar_from_camera'"):
        read_folder_calibration(write(tmp_path / "a.json", **{key: K.tolist()}))


def test_a_calibration_that_was_corrected_is_read_again(tmp_path):
    path = write(tmp_path / "a.json")
    assert read_folder_calibration(path)["front"].intrinsics[0, 0] == K[0, 0]
    write(path, intrinsics=(K * [[2.0], [1.0], [1.0]]).tolist())
    assert read_folder_calibration(path)["front"].intrinsics[0, 0] == 2 * K[0, 0]


def test_the_inverse_transform_may_be_given_by_its_name(tmp_path):
    inverse = np.linalg.inv(tilted(0.1)).tolist()
    path = write(tmp_path / "a.json")
    path.write_text(path.read_text().replace("camera_from_lidar", "lidar_from_camera"))
    assert not np.allclose(read_folder_calibration(path)["front"].camera_from_lidar, POSE)
    entry = {"intrinsics": K.tolist(), "lidar_from_camera": inverse}
    (tmp_path / "b.json").write_text(json.dumps({"front": entry}))
    np.testing.assert_allclose(
        read_folder_calibration(tmp_path / "b.json")["front"].camera_from_lidar, tilted(0.1), atol=1e-12
    )
    with pytest.raises(DataError, match="camera_from_lidar"):
        read_folder_calibration(write(tmp_path / "c.json", lidar_from_camera=inverse))


@pytest.mark.parametrize("key", ["intrinsics", "camera_from_lidar"])
def test_a_faulty_matrix_of_a_folder_is_named_with_its_file(tmp_path, key):
    matrix = {"intrinsics": K, "camera_from_lidar": POSE}[key].T
    with pytest.raises(DataError, match=rf"{key}.json: front.{key} .*transposed"):
        read_folder_calibration(write(tmp_path / f"{key}.json", **{key: matrix.tolist()}))


def line(name, values, colon=":"):
    return f"{name}{colon} {' '.join(map(str, np.ravel(values)))}\n"


@pytest.fixture
def odometry(tmp_path):
    """An odometry calibration with a tilted camera 0; its lines by name, and its path."""
    projections = {f"P{n}": np.c_[K, [-50.0 * n, 0.3 * n, 0.004]] for n in range(4)}
    path = tmp_path / "calib.txt"
    path.write_text("".join(line(*row) for row in projections.items()) + line("Tr", tilted(0.02)[:3]))
    return projections, path


@pytest.mark.parametrize("kind", ["odometry", "object", "tracking", "raw", "kitti-360"])
def test_every_benchmark_of_kitti_gives_the_projection_of_odometry(odometry, tmp_path, kind):
    projections, path = odometry
    rotation = tilted(-0.01)
    rotation[:3, :3] @= POSE[:3, :3].T
    rotation[:3, 3] = 0
    pose = np.linalg.inv(rotation) @ tilted(0.02)
    rows = "".join(line(*row) for row in projections.items())
    other = tmp_path / "000007.txt"
    if kind == "odometry":
        other = path
    elif kind == "object":
        imu = line("Tr_imu_to_velo", POSE[:3])
        other.write_text(rows + line("R0_rect", rotation[:3, :3]) + line("Tr_velo_to_cam", pose[:3]) + imu + "\n")
    elif kind == "tracking":
        other.write_text(rows + line("R_rect", rotation[:3, :3], "") + line("Tr_velo_cam", pose[:3], ""))
    else:
        other = tmp_path / "calib_cam_to_cam.txt"
        dated = "calib_time: 09-Jan-2012 13:57:47\n"
        other.write_text(
            dated
            + line("R_rect_00", rotation[:3, :3])
            + "".join(line(f"P_rect_0{n[1]}", p) + line(f"D_0{n[1]}", np.ones(5)) for n, p in projections.items())
        )
        if kind == "raw":
            lidar = tmp_path / "calib_velo_to_cam.txt"
            lidar.write_text(dated + line("R", pose[:3, :3]) + line("T", pose[:3, 3]))
        else:
            other = other.rename(tmp_path / "perspective.txt")
            (tmp_path / "calib_cam_to_velo.txt").write_text(line("", np.linalg.inv(pose)[:3], "").lstrip())
    found, expected = read_kitti_calibration(other), read_calibration(path)
    for camera in ("image_2", "image_3"):
        for matrix, wanted in zip(found[camera], expected[camera], strict=True):
            np.testing.assert_allclose(matrix, wanted, atol=1e-9)
    assert set(found) == {f"image_{prefix}{n}" for prefix in ("", "0") for n in range(4)}


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (lambda rows: rows + line("R0_rect", np.eye(3)), "Tr"),
        (lambda rows: rows + line("Tr_velo_to_cam", POSE[:3]), "R0_rect"),
        (lambda rows: rows + line("R0_rect", np.eye(3)) + line("Tr_velo_to_cam", POSE[:3] * 2), "scales by 2"),
        (lambda rows: rows + line("R0_rect", np.eye(2)) + line("Tr_velo_to_cam", POSE[:3]), "9 finite"),
    ],
)
def test_a_kitti_calibration_in_a_folder_never_asks_for_odometry(odometry, tmp_path, damage, facts):
    path = tmp_path / "000000.txt"
    path.write_text(damage("".join(line(*row) for row in odometry[0].items())))
    with pytest.raises(DataError, match=facts) as caught:
        read_folder_calibration(path)
    assert "odometry" not in str(caught.value)


def test_a_raw_recording_needs_both_of_its_files(odometry, tmp_path):
    path = tmp_path / "calib_cam_to_cam.txt"
    path.write_text(line("P_rect_02", odometry[0]["P2"]) + line("R_rect_00", np.eye(3)))
    with pytest.raises(MissingDataError, match=r"calib_velo_to_cam\.txt"):
        read_kitti_calibration(path)

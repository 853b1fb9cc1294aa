"""Intrinsics as OpenCV, ROS and Kalibr write them, beside the transform from the LiDAR."""

import json

import cv2
import numpy as np
import pytest
import yaml
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets.folder_calibration import read_folder_calibration

K = np.array([[702.5, 0, 618.25], [0, 705.0, 181.5], [0, 0, 1]])
D = [-0.31, 0.12, 0.0013, -0.0007, -0.02]
FISH = [-0.03, 0.01, -0.004, 0.001]
POSE = [[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]]


def matrix(values, rows):
    return {"rows": rows, "cols": len(values) // rows, "data": values}


def info(model, coefficients):
    """A saved ``camera_info``, as the calibrator of image_pipeline writes it."""
    return {
        "image_width": 1242,
        "image_height": 375,
        "camera_name": "front",
        "camera_matrix": matrix(K.ravel().tolist(), 3),
        "distortion_model": model,
        "distortion_coefficients": matrix(coefficients, 1),
        "rectification_matrix": matrix(np.eye(3).ravel().tolist(), 3),
        "projection_matrix": matrix(np.eye(3, 4).ravel().tolist(), 3),
    }


def echoed(upper):
    """A message as ``rostopic echo`` (upper case) or ``ros2 topic echo`` prints it, twice."""
    message = {"header": {"frame_id": "front"}, "height": 375, "width": 1242, "distortion_model": "plumb_bob"}
    values = {"D": D, "K": K.ravel().tolist(), "R": np.eye(3).ravel().tolist(), "P": np.eye(3, 4).ravel().tolist()}
    message |= {name if upper else name.lower(): value for name, value in values.items()}
    return 2 * (yaml.safe_dump({**message, "binning_x": 0}) + "---\n")


def kalibr(model, coefficients, camera_model="pinhole"):
    entry = {
        "cam_overlaps": [],
        "camera_model": camera_model,
        "distortion_coeffs": coefficients,
        "distortion_model": model,
        "intrinsics": K[[0, 1, 0, 1], [0, 1, 2, 2]].tolist(),
        "resolution": [1242, 375],
        "rostopic": "/front/image_raw",
    }
    return yaml.safe_dump({"cam0": {**entry, "intrinsics": [1, 1, 1, 1]}, "cam1": {**entry, "T_cn_cnm1": POSE}})


def storage(path, **values):
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name, value in values.items():
        file.write(name, value)
    file.release()


def calibration(folder, **entry):
    path = folder / f"calibration-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps({"front": {"camera_from_lidar": POSE, **entry}}))
    return path


@pytest.mark.parametrize(
    ("text", "name", "kind", "coefficients", "size"),
    [
        (yaml.safe_dump(info("plumb_bob", D)), "", "pinhole", D, (1242, 375)),
        (
            yaml.safe_dump(info("rational_polynomial", [*D, 0.4, 0.2, 0.1])),
            "",
            "pinhole",
            [*D, 0.4, 0.2, 0.1],
            (1242, 375),
        ),
        (yaml.safe_dump(info("equidistant", FISH)), "", "fisheye", FISH, (1242, 375)),
        (yaml.safe_dump(info("plumb_bob", [0.0] * 5)), "", None, None, (1242, 375)),
        (echoed(True), "", "pinhole", D, (1242, 375)),
        (echoed(False), "", "pinhole", D, (1242, 375)),
        (kalibr("radtan", D[:4]), ":cam1", "pinhole", D[:4], (1242, 375)),
        (kalibr("equidistant", FISH), ":cam1", "fisheye", FISH, (1242, 375)),
        (kalibr("none", []), ":cam1", None, None, (1242, 375)),
    ],
)
def test_the_files_of_ros_and_kalibr_are_read(tmp_path, text, name, kind, coefficients, size):
    (tmp_path / "camera.yaml").write_text(text)
    found = read_folder_calibration(calibration(tmp_path, intrinsics=f"camera.yaml{name}"))["front"]
    np.testing.assert_array_equal(found.intrinsics, K)
    np.testing.assert_array_equal(found.camera_from_lidar, POSE)
    assert found.size == size
    assert (found.lens and found.lens.kind) == kind
    assert kind is None or found.lens.distortion == tuple(coefficients)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
@pytest.mark.parametrize(
    "names", [("camera_matrix", "distortion_coefficients"), ("K", "D"), ("cameraMatrix", "distCoeffs")]
)
def test_the_file_storage_of_opencv_is_read_without_its_tags(tmp_path, suffix, names):
    path = tmp_path / f"camera{suffix}"
    storage(path, **{names[0]: K, names[1]: np.array(D)[:, None], "image_width": 1242, "image_height": 375})
    found = read_folder_calibration(calibration(tmp_path, intrinsics=path.name))["front"]
    np.testing.assert_allclose(found.intrinsics, K)
    np.testing.assert_allclose(found.lens.distortion, D)
    assert found.size == (1242, 375)


def test_a_whole_calibration_may_be_a_file_storage(tmp_path):
    path = tmp_path / "calibration.yaml"
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    file.startWriteStruct("front", cv2.FileNode_MAP)
    file.write("intrinsics", K)
    file.write("camera_from_lidar", np.array(POSE, float))
    file.endWriteStruct()
    file.release()
    found = read_folder_calibration(path)["front"]
    np.testing.assert_array_equal(found.intrinsics, K)
    np.testing.assert_array_equal(found.camera_from_lidar, POSE)


def test_rectified_images_take_the_matrix_without_the_lens(tmp_path):
    (tmp_path / "camera.yaml").write_text(yaml.safe_dump(info("plumb_bob", D)))
    path = calibration(tmp_path, intrinsics="camera.yaml", distortion=[0, 0, 0, 0])
    assert read_folder_calibration(path)["front"].lens is None


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (yaml.safe_dump(info("plumb_bob", D)), ["ROS", "camera.yaml", "camera_from_lidar"]),
        (kalibr("radtan", D[:4]), ["Kalibr", "camera_from_lidar"]),
        (
            "%YAML:1.0\n---\nK: !!opencv-matrix\n  rows: 3\n  cols: 3\n  dt: d\n  data: [1,0,0,0,1,0,0,0,1]\n",
            ["OpenCV"],
        ),
        ('<?xml version="1.0"?>\n<opencv_storage></opencv_storage>', ["XML", "cv2.FileStorage"]),
        ("front: !!python/object/apply:os.system [true]", ["python/object"]),
    ],
)
def test_a_file_without_the_lidar_is_named_with_what_to_write(tmp_path, text, facts):
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_folder_calibration(path)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("text", "name", "facts"),
    [
        (kalibr("radtan", D[:4]), "", ["'front'", "cam0, cam1"]),
        (kalibr("none", [], "omni"), ":cam1", ["omni", "pinhole"]),
        (kalibr("fov", [0.9]), ":cam1", ["fov"]),
        (yaml.safe_dump(info("plumb_bob", D[:3])), "", ["distortion", "-0.31"]),
        ("a: 1", "", ["camera.yaml"]),
    ],
)
def test_a_camera_file_that_cannot_be_used_says_why(tmp_path, text, name, facts):
    (tmp_path / "camera.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        read_folder_calibration(calibration(tmp_path, intrinsics=f"camera.yaml{name}"))
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_camera_file_that_is_missing_is_missed(tmp_path):
    with pytest.raises(MissingDataError, match=r"camera\.yaml"):
        read_folder_calibration(calibration(tmp_path, intrinsics="camera.yaml"))

"""Calibrations of a folder of one's own: poses in every form, and what is wrong with a faulty one."""

import json

import numpy as np
import pytest
from xd3d.errors import DataError
from xd3d.stages.datasets.folder_calibration import read_folder_calibration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must name cameras"),
        ("{", "neither JSON nor YAML"),
        ("front: 2001-13-01", "neither JSON nor YAML"),
        ('{"front": {"intrinsics": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}}', "front.camera_from_lidar"),
        ('{"front": {"intrinsics": [[.nan, 0, 0], [0, 1, 0], [0, 0, 1]]}}', "front.intrinsics.*3x3 finite"),
    ],
)
def test_a_faulty_calibration_is_named(tmp_path, text, message):
    path = tmp_path / f"{abs(hash(text))}.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_folder_calibration(path)


def camera(**pose):
    intrinsics = [[100, 0, 64], [0, 100, 48], [0, 0, 1]]
    return {"front": {"intrinsics": intrinsics, **pose}}


def test_a_pose_may_be_translation_and_rotation_by_name(tmp_path):
    turn = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    named = {"x": 0.5, "w": 0.5, "y": -0.5, "z": 0.5}
    forms = [
        [[*row, shift] for row, shift in zip(turn, (0.1, 0.2, 0.3), strict=True)],
        {"translation": [0.1, 0.2, 0.3], "rotation": turn},
        {"translation": {"x": 0.1, "z": 0.3, "y": 0.2}, "rotation": named},
    ]
    for number, form in enumerate(forms):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(camera(camera_from_lidar=form)))
        found = read_folder_calibration(path)["front"].camera_from_lidar
        np.testing.assert_allclose(found[:3], forms[0], atol=1e-12)
    path = tmp_path / "inverse.json"
    path.write_text(json.dumps(camera(lidar_from_camera=forms[2])))
    np.testing.assert_allclose(read_folder_calibration(path)["front"].camera_from_lidar @ found, np.eye(4), atol=1e-12)


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        ([0.5, 0.5, -0.5, 0.5], ["4 numbers", "w: ..., x: ..."]),
        ([0, 0, 0, 0.5, 0.5, -0.5, 0.5], ["7 numbers", "w: ..., x: ..."]),
        ({"translation": [0, 0, 0], "rotation": [0.5, 0.5, -0.5, 0.5]}, ["4 numbers", "w: ..., x: ..."]),
        ({"translation": [0, 0, 0], "quaternion": [1, 0, 0, 0]}, ["quaternion", "rotation"]),
        ({"w": 1, "x": 0, "y": 0, "z": 0}, ["w, x, y, z", "translation"]),
        ({"translation": [0, 0, 0], "rotation": {"w": 1, "x": 1, "y": 0, "z": 0}}, ["length"]),
        ({"translation": [0, 0, 0], "rotation": {"qw": 1, "x": 1, "y": 0, "z": 0}}, ["w, x, y, z"]),
        ({"translation": {"x": 1}, "rotation": {"w": 1, "x": 0, "y": 0, "z": 0}}, ["translation", "3"]),
    ],
)
def test_a_quaternion_in_unclear_order_is_refused_with_the_form_that_is_clear(tmp_path, pose, words):
    path = tmp_path / f"{abs(hash(str(pose)))}.json"
    path.write_text(json.dumps(camera(camera_from_lidar=pose)))
    with pytest.raises(DataError) as caught:
        read_folder_calibration(path)
    assert [word for word in words if word not in str(caught.value)] == []

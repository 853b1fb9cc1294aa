"""Calibration files of KITTI: odometry, object, tracking and raw recordings.

| benchmark | file | projection | camera 0 from LiDAR |
|---|---|---|---|
| odometry | ``calib.txt`` | P0 to P3 | Tr |
| object | ``calib/000000.txt`` | P0 to P3 | R0_rect, Tr_velo_to_cam |
| tracking | ``calib/0000.txt`` | P0 to P3 | R_rect, Tr_velo_cam |
| raw | ``calib_cam_to_cam.txt`` | P_rect_00 to P_rect_03 | R_rect_00; R and T of ``calib_velo_to_cam.txt`` beside it |
| KITTI-360 | ``perspective.txt`` | P_rect_00, P_rect_01 | R_rect_00; inverse of ``calib_cam_to_velo.txt`` beside it |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from .calibration_checks import intrinsics_fault, pose_fault
from .text_files import read_text

__all__ = ["KITTI_REMEDY", "Calibration", "read_calibration", "read_kitti_calibration"]

KITTI_REMEDY = "unpack data_odometry_calib.zip again"
_ODOMETRY = (
    f"{KITTI_REMEDY} (https://www.cvlibs.net/datasets/kitti/eval_odometry.php), or index without images: --cameras none"
)
_COLOUR = ("image_2", "image_3")
#: Rotation to the rectified camera 0, and camera 0 from LiDAR.
_ROTATIONS, _POSES = ("R0_rect", "R_rect"), ("Tr_velo_to_cam", "Tr_velo_cam")
_RAW_ROTATION, _RAW_POSE, _INVERSE_POSE = "R_rect_00", "calib_velo_to_cam.txt", "calib_cam_to_velo.txt"


class Calibration(NamedTuple):
    """Projection to a camera: pixels = intrinsics @ (camera_from_lidar @ point), over the third coordinate."""

    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_lidar: Float64[np.ndarray, "4 4"]


def read_calibration(path: Path) -> Mapping[str, Calibration]:
    """Returns the calibration of the colour cameras of an odometry sequence, by the folder of their images.

    Raises:
        MissingDataError: the file is missing.
        DataError: P2, P3 or Tr is missing, is not twelve finite numbers, or is no camera matrix or rigid transform.
    """
    found = _File(path, KITTI_REMEDY, missing=_ODOMETRY)
    reference = found.pose("Tr")
    return {camera: found.camera(f"P{camera[-1]}", reference) for camera in _COLOUR}


def read_kitti_calibration(path: Path) -> Mapping[str, Calibration]:
    """Returns the calibration of every camera in a file of any of KITTI's benchmarks.

    Camera 2 is called ``image_2`` and, as in raw recordings, ``image_02``.

    Raises:
        MissingDataError: the file, or the second file of a raw recording, is missing.
        DataError: a line is missing, is not of finite numbers, or is no camera matrix or rigid transform.
    """
    remedy = "copy it from the data set again, or describe the cameras in JSON (docs/data/folder.md)"
    found = _File(path, remedy)
    reference = _reference(found, remedy)
    matrices = {name: name[-1] for name in found.rows if name in {f"P{n}" for n in range(4)} or "P_rect_0" in name}
    cameras = {number: found.camera(name, reference) for name, number in matrices.items()}
    return {f"{prefix}{number}": camera for number, camera in cameras.items() for prefix in ("image_", "image_0")}


def _reference(found: "_File", remedy: str) -> Float64[np.ndarray, "4 4"]:
    """Rectified camera 0 from LiDAR."""
    pose = next((name for name in _POSES if name in found.rows), None)
    if pose is not None:
        rotation = next((name for name in _ROTATIONS if name in found.rows), _ROTATIONS[0])
        return found.pose(rotation) @ found.pose(pose)
    inverse = found.path.with_name(_INVERSE_POSE)
    if _RAW_ROTATION in found.rows and inverse.is_file():
        return found.pose(_RAW_ROTATION) @ np.linalg.inv(_File(inverse, remedy).pose(inverse.stem))
    if _RAW_ROTATION in found.rows:
        lidar = _File(found.path.with_name(_RAW_POSE), remedy)
        camera_from_lidar = lidar.pose("R")
        camera_from_lidar[:3, 3] = lidar.numbers("T", 3)
        return found.pose(_RAW_ROTATION) @ camera_from_lidar
    return found.pose("Tr")


class _File:
    """The lines of a calibration file: names, with a colon or without, and numbers; one line may have no name."""

    def __init__(self, path: Path, remedy: str, *, missing: str | None = None) -> None:
        self.path, self._remedy = path, remedy
        lines = read_text(path, "calibration", remedy, missing=missing).splitlines()
        parts = (line.partition(":" if ":" in line else " ") for line in lines)
        self.rows = {name.strip(): text.strip() for name, _, text in parts if name.strip()}
        if len(lines) == 1 and ":" not in lines[0]:  # KITTI-360 writes the numbers alone
            self.rows = {path.stem: lines[0]}

    def numbers(self, name: str, count: int) -> Float64[np.ndarray, "count"]:
        """Returns the ``count`` finite numbers in the line ``name``."""
        if name not in self.rows:
            known = ", ".join(self.rows) or "none"
            raise DataError(f"The calibration {self.path} has no line '{name}:'; it has {known}; {self._remedy}")
        try:
            values = np.array([float(word) for word in self.rows[name].split()])
        except ValueError as error:
            raise self._error(name, f"is damaged ({error})") from error
        if len(values) != count or not np.isfinite(values).all():
            raise self._error(name, f"must be {count} finite numbers; it is '{self.rows[name][:60]}'")
        return values

    def pose(self, name: str) -> Float64[np.ndarray, "4 4"]:
        """Returns the rigid transform in a line of 12 numbers, or of 9 for a rotation."""
        columns = 3 if name.startswith("R") else 4
        pose = np.eye(4)
        pose[:3, :columns] = self.numbers(name, 3 * columns).reshape(3, columns)
        if fault := pose_fault(pose):
            raise self._error(name, fault)
        return pose

    def camera(self, name: str, reference: Float64[np.ndarray, "4 4"]) -> Calibration:
        """Returns the camera of the projection matrix P = K [I | t] in a line.

        Its last column p4 holds the offset from camera 0, so that P Tr x = K (Tr x + K^-1 p4).
        """
        matrix = self.numbers(name, 12).reshape(3, 4)
        if fault := intrinsics_fault(matrix[:, :3]):
            raise self._error(name, fault)
        camera_from_lidar = reference.copy()
        camera_from_lidar[:3, 3] += np.linalg.solve(matrix[:, :3], matrix[:, 3])
        return Calibration(matrix[:, :3], camera_from_lidar)

    def _error(self, name: str, fault: str) -> DataError:
        return DataError(f"{name} in the calibration {self.path} {fault}; {self._remedy}")

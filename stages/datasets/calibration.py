"""Calibrations in files: ``calib.txt`` of KITTI odometry, and JSON or YAML of a user's folder.

``calib.txt`` holds the projection matrices P0 to P3 and ``Tr``, camera 0 from LiDAR. The other files have an entry per
camera: ``camera: {intrinsics: 3x3, camera_from_lidar: 4x4}``.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from ...files import parse_yaml
from .projection import is_invertible
from .texts import read_text

__all__ = ["Calibration", "read_calibration", "read_folder_calibration"]

_REMEDY = "unpack data_odometry_calib.zip again"
_MATRIX_OF = {"image_2": "P2", "image_3": "P3"}
_SHAPES = {"intrinsics": ((3, 3),), "camera_from_lidar": ((4, 4), (3, 4))}


class Calibration(NamedTuple):
    """Projection to a camera: pixels = intrinsics @ (camera_from_lidar @ point), over the third coordinate."""

    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_lidar: Float64[np.ndarray, "4 4"]


def read_calibration(path: Path) -> Mapping[str, Calibration]:
    """Returns the calibration of the colour cameras of a sequence, by the folder of their images.

    The last column p4 of P = K [I | t] holds the offset from camera 0, so that P Tr x = K (Tr x + K^-1 p4).

    Raises:
        MissingDataError: the file is missing.
        DataError: P2, P3 or Tr is missing, is not twelve numbers, or is not finite.
    """
    missing = (
        f"{_REMEDY} (https://www.cvlibs.net/datasets/kitti/eval_odometry.php), or index without images: --cameras none"
    )
    lines = read_text(path, "calibration", _REMEDY, missing=missing).splitlines()
    rows = {name.strip(): text for name, colon, text in (line.partition(":") for line in lines) if colon}
    reference = np.eye(4)
    reference[:3] = _matrix(path, rows, "Tr")
    found = {}
    for camera, name in _MATRIX_OF.items():
        matrix = _matrix(path, rows, name)
        camera_from_lidar = reference.copy()
        camera_from_lidar[:3, 3] += np.linalg.solve(matrix[:, :3], matrix[:, 3])
        found[camera] = Calibration(matrix[:, :3], camera_from_lidar)
    return found


def _matrix(path: Path, rows: Mapping[str, str], name: str) -> Float64[np.ndarray, "3 4"]:
    if name not in rows:
        raise DataError(f"The calibration {path} has no line '{name}:'; it has {', '.join(rows) or 'none'}; {_REMEDY}")
    try:
        values = np.array([float(word) for word in rows[name].split()])
    except ValueError as error:
        raise DataError(f"{name} in the calibration {path} is damaged ({error}); {_REMEDY}") from error
    if len(values) != 12 or not np.isfinite(values).all():
        raise DataError(
            f"{name} in the calibration {path} must be 12 finite numbers; it is '{rows[name].strip()[:60]}'; {_REMEDY}"
        )
    matrix = values.reshape(3, 4)
    if not is_invertible(matrix[:, :3]):
        raise DataError(f"{name} in the calibration {path} cannot be inverted; {_REMEDY}")
    return matrix


@lru_cache(maxsize=1)
def read_folder_calibration(path: Path) -> Mapping[str, Calibration]:
    """Returns the calibration of each camera in ``path``.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is not ``camera: {intrinsics: 3x3, camera_from_lidar: 4x4}``, or a matrix is not finite or
            cannot be inverted.
    """
    if path.suffix == ".txt":
        return read_calibration(path)
    text = read_text(path, "calibration", "restore it, or correct dataset.yaml")
    try:
        cameras = parse_yaml(text)
    except ValueError as error:
        raise DataError(f"The calibration {path} is neither JSON nor YAML ({error}); write it again") from error
    if not isinstance(cameras, dict):
        raise DataError(f"The calibration {path} must name cameras; it holds a {type(cameras).__name__}")
    return {str(name): _folder_camera(path, str(name), values) for name, values in cameras.items()}


def _folder_camera(path: Path, name: str, values: Any) -> Calibration:
    matrices = {part: _folder_matrix(path, f"{name}.{part}", part, values) for part in _SHAPES}
    camera_from_lidar = np.eye(4)
    camera_from_lidar[:3] = matrices["camera_from_lidar"][:3]
    return Calibration(matrices["intrinsics"], camera_from_lidar)


def _folder_matrix(path: Path, key: str, part: str, values: Any) -> Float64[np.ndarray, "rows columns"]:
    shapes = _SHAPES[part]
    try:
        matrix = np.array(values[part], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{key} in the calibration {path} is missing or no matrix ({error})") from error
    if matrix.shape not in shapes or not np.isfinite(matrix).all():
        wanted = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
        raise DataError(f"{key} in the calibration {path} must be {wanted} finite numbers; it is {matrix.tolist()}")
    if not is_invertible(matrix[:3, :3]):
        raise DataError(f"{key} in the calibration {path} cannot be inverted; it is {matrix.tolist()}")
    return matrix

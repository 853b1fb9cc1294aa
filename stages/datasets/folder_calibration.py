"""Calibrations of a user's folder: JSON or YAML with an entry per camera, or a text file of KITTI.

``camera: {intrinsics: 3x3, camera_from_lidar: 4x4}``; a key that is not known is an error, since ignoring it could move
every point.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import DataError, nearest
from ...files import parse_yaml
from .calibration import Calibration, read_kitti_calibration
from .calibration_checks import intrinsics_fault, pose_fault
from .texts import read_text

__all__ = ["read_folder_calibration"]

_SHAPES = {"intrinsics": ((3, 3),), "camera_from_lidar": ((4, 4), (3, 4))}


@lru_cache(maxsize=1)
def read_folder_calibration(path: Path) -> Mapping[str, Calibration]:
    """Returns the calibration of each camera in ``path``.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is not ``camera: {intrinsics: 3x3, camera_from_lidar: 4x4}``, has other keys, or a matrix is no
            camera matrix or rigid transform.
    """
    if path.suffix == ".txt":
        return read_kitti_calibration(path)
    text = read_text(path, "calibration", "restore it, or correct dataset.yaml")
    try:
        cameras = parse_yaml(text)
    except ValueError as error:
        raise DataError(f"The calibration {path} is neither JSON nor YAML ({error}); write it again") from error
    if not isinstance(cameras, dict):
        raise DataError(f"The calibration {path} must name cameras; it holds a {type(cameras).__name__}")
    return {str(name): _camera(f"The calibration {path}: {name}", values) for name, values in cameras.items()}


def _camera(where: str, values: Any) -> Calibration:
    if not isinstance(values, dict):
        raise DataError(f"{where} must have the keys {', '.join(_SHAPES)}; it is a {type(values).__name__}")
    for key in values:
        if key not in _SHAPES:
            raise DataError(f"{where} has the unknown key '{key}'; {nearest(str(key), _SHAPES)}")
    intrinsics = _matrix(where, "intrinsics", values)
    if fault := intrinsics_fault(intrinsics):
        raise DataError(f"{where}.intrinsics {fault}")
    camera_from_lidar = np.eye(4)
    found = _matrix(where, "camera_from_lidar", values)
    camera_from_lidar[: len(found)] = found
    if fault := pose_fault(camera_from_lidar):
        raise DataError(f"{where}.camera_from_lidar {fault}")
    return Calibration(intrinsics, camera_from_lidar)


def _matrix(where: str, key: str, values: Mapping[str, Any]) -> Float64[np.ndarray, "rows columns"]:
    try:
        matrix = np.array(values[key], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}.{key} is missing or no matrix ({error})") from error
    if matrix.shape not in _SHAPES[key] or not np.isfinite(matrix).all():
        wanted = " or ".join(f"{rows}x{columns}" for rows, columns in _SHAPES[key])
        raise DataError(f"{where}.{key} must be {wanted} finite numbers; it is {matrix.tolist()}")
    return matrix

"""Calibration of a folder of one's own: a JSON or YAML file by camera, or KITTI's ``calib.txt``."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from ...files import parse_yaml
from .kitti_calibration import Calibration, read_calibration
from .projection import is_invertible
from .texts import read_text

__all__ = ["read_cameras"]

_SHAPES = {"intrinsics": ((3, 3),), "camera_from_lidar": ((4, 4), (3, 4))}


@lru_cache(maxsize=1)
def read_cameras(path: Path) -> Mapping[str, Calibration]:
    """The calibration of each camera in ``path``.

    Raises:
        MissingDataError: there is no such file.
        DataError: it is not ``camera: {intrinsics: 3x3, camera_from_lidar: 4x4}``, or a matrix is not finite or
            cannot be inverted.
    """
    if path.suffix == ".txt":
        return read_calibration(path)
    text = read_text(path, "calibration", "put it there again, or mend dataset.yaml")
    try:
        cameras = parse_yaml(text)
    except ValueError as error:
        raise DataError(f"The calibration {path} is neither JSON nor YAML ({error}); write it again") from error
    if not isinstance(cameras, dict):
        raise DataError(f"The calibration {path} must name cameras; it holds a {type(cameras).__name__}")
    return {str(name): _camera(path, str(name), values) for name, values in cameras.items()}


def _camera(path: Path, name: str, values: Any) -> Calibration:
    matrices = {part: _matrix(path, f"{name}.{part}", part, values) for part in _SHAPES}
    camera_from_lidar = np.eye(4)
    camera_from_lidar[:3] = matrices["camera_from_lidar"][:3]
    return Calibration(matrices["intrinsics"], camera_from_lidar)


def _matrix(path: Path, key: str, part: str, values: Any) -> Float64[np.ndarray, "rows columns"]:
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

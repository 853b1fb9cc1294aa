"""``calib.txt`` of a KITTI odometry sequence: projection matrices P0 to P3 and ``Tr``, camera 0 from LiDAR."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from .projection import is_invertible
from .texts import read_text

__all__ = ["Calibration", "read_calibration"]

_REMEDY = "unpack data_odometry_calib.zip again"
_MATRIX_OF = {"image_2": "P2", "image_3": "P3"}


class Calibration(NamedTuple):
    """How a camera sees the sweep: pixels = intrinsics @ (camera_from_lidar @ point), over the third coordinate."""

    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_lidar: Float64[np.ndarray, "4 4"]


def read_calibration(path: Path) -> Mapping[str, Calibration]:
    """The calibration of the colour cameras of a sequence, by the folder of their images.

    P = K [I | t] carries the camera's distance from camera 0 in its last column, so that P Tr x = K (Tr x + K^-1 p4).

    Raises:
        MissingDataError: there is no such file.
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

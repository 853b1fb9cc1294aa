"""Intrinsics in files of other tools: OpenCV's FileStorage, ROS ``camera_info`` (saved or echoed), Kalibr's camchain.

They hold a camera matrix, a lens and the size of the images, but not where the LiDAR is. OpenCV's tag for matrices is
read as the mapping that it marks, with the safe loader of YAML: nothing is constructed from a file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import parse_yaml
from .text_files import read_text

__all__ = ["camera_file_kind", "parse_calibration", "plain_values", "read_camera_file"]

#: Names of a value in the files of these tools, without underscores and in lower case.
_NAMES = {
    "intrinsics": ("cameramatrix", "k", "cameramat", "intrinsics"),
    "distortion": ("distortioncoefficients", "distcoeffs", "distcoeff", "d", "distortioncoeffs", "distortion"),
    "model": ("distortionmodel",),
    "size": ("imagesize", "resolution"),
    "width": ("imagewidth", "width"),
    "height": ("imageheight", "height"),
}
_HEADER = re.compile(r"\A\ufeff?(%YAML[: ][\d.]+\s*\n)?(---\s*\n)?")


def parse_calibration(text: str) -> Any:
    """Returns the values in a calibration as JSON, YAML, or OpenCV's YAML; of several documents the first.

    Raises:
        ValueError: it is none of them.
    """
    if text.lstrip().startswith("<?xml"):
        raise ValueError("it is XML; write it as .yaml with cv2.FileStorage")
    first = re.split(r"^(?:---|\.\.\.)", _HEADER.sub("", text), maxsplit=1, flags=re.MULTILINE)[0]
    return parse_yaml(first.replace("!!opencv-matrix", ""))


def plain_values(value: Any) -> Any:
    """Returns the rows of a matrix that is stored as ``rows``, ``cols`` and ``data``; other values as they are."""
    if not isinstance(value, dict) or not {"rows", "cols", "data"} <= value.keys():
        return value
    data, width = value["data"], value["cols"]
    if not isinstance(data, list) or not isinstance(width, int) or width < 1:
        return data
    return [data[start : start + width] for start in range(0, len(data), width)]


def camera_file_kind(values: Mapping[str, Any]) -> str | None:
    """Returns the tool whose intrinsics ``values`` are; None if they are something else."""
    if any(isinstance(entry, dict) and "camera_model" in entry for entry in values.values()):
        return "Kalibr camchain"
    if len(_flat(_find(values, "intrinsics"))) != 9 or "camera_from_lidar" in values:
        return None
    return "ROS camera_info" if "distortion_model" in values else "OpenCV"


def read_camera_file(path: Path, camera: str | None) -> dict[str, Any]:
    """Returns ``intrinsics``, ``model``, ``distortion`` and ``size``, as far as ``path`` has them.

    ``camera``: the name of a camera in a file of several.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is of another kind, does not have the camera, or its camera model is not OpenCV's.
    """
    try:
        values = parse_calibration(read_text(path, "calibration", "restore it, or give the intrinsics as numbers"))
    except ValueError as error:
        raise DataError(f"The calibration {path} is not YAML ({error}); write it again") from error
    kind = camera_file_kind(values) if isinstance(values, dict) else None
    if kind is None:
        raise DataError(f"{path} holds no camera of OpenCV, ROS camera_info or Kalibr; give the intrinsics as numbers")
    if kind.startswith("Kalibr"):
        if camera not in values:
            raise DataError(f"{path} has no camera '{camera}'; give FILE:CAMERA with one of {', '.join(values)}")
        values = values[camera]
        if values.get("camera_model") != "pinhole":
            raise DataError(
                f"Camera {camera} in {path} has the model '{values.get('camera_model')}'; calibrate it as"
                " pinhole-radtan or pinhole-equi"
            )
    return _entry(values)


def _entry(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a calibration of a user's folder."""
    found = {name: _find(values, name) for name in _NAMES}
    matrix = _flat(found["intrinsics"])
    if len(matrix) == 4:
        focal_x, focal_y, centre_x, centre_y = matrix
        matrix = [focal_x, 0.0, centre_x, 0.0, focal_y, centre_y, 0.0, 0.0, 1.0]
    distortion = _flat(found["distortion"])
    model = found["model"] or ("fisheye" if values.get("fisheye_model") else "pinhole")
    size = _flat(found["size"]) or [found["width"], found["height"]]
    return {
        "intrinsics": [matrix[start : start + 3] for start in range(0, len(matrix), 3)],
        **({"model": model, "distortion": distortion} if distortion and model != "none" else {}),
        **({"size": size} if all(size) else {}),
    }


def _find(values: Mapping[str, Any], name: str) -> Any:
    known = {str(key).replace("_", "").lower(): value for key, value in values.items()}
    return next((known[alias] for alias in _NAMES[name] if alias in known), None)


def _flat(value: Any) -> list[Any]:
    """The numbers of a matrix, a list, or lists in a list."""
    rows = plain_values(value)
    if not isinstance(rows, list):
        return [] if rows is None else [rows]
    return [number for row in rows for number in (row if isinstance(row, list) else [row])]

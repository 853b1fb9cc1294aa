"""``cams_lidars.json`` and ``class_list.json`` of A2D2."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from .calibration_checks import intrinsics_fault, lens_fault, size_fault
from .catalogue import A2D2_COLOURS
from .lens import Lens
from .text_files import read_object

__all__ = ["View", "check_class_list", "read_view"]

_DOWNLOAD = "download cams_lidars.json again (https://www.a2d2.audi/a2d2/en/download.html) into the root"
_KINDS: dict[str, tuple[Literal["fisheye", "telecam"], int]] = {"Fisheye": ("fisheye", 4), "Telecam": ("telecam", 5)}


class View(NamedTuple):
    """A camera: image size, intrinsics of the undistorted image, and lens."""

    size: tuple[int, int]
    intrinsics: Float64[np.ndarray, "3 3"]
    lens: Lens | None


def read_view(path: Path, camera: str) -> View:
    """Returns the calibration of ``camera``; without a lens if its type is neither fisheye nor telecam.

    Raises:
        MissingDataError: the file is missing.
        DataError: the camera or a value is missing, of another shape, not finite, or not invertible.
    """
    found = read_object(path, "calibration", _DOWNLOAD)
    try:
        values: dict[str, Any] = found["cameras"][camera]
        width, height = (int(side) for side in values["Resolution"])
        straight, stored = (_matrix(values, name, (width, height)) for name in ("CamMatrix", "CamMatrixOriginal"))
        kind = _KINDS.get(str(values["Lens"]))
        distortion = _numbers(values, "Distortion", kind[1]) if kind else np.zeros(0)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"The calibration of {camera} in {path} is damaged ({error}); {_DOWNLOAD}") from error
    lens = None
    if kind is not None:
        plain = {"stored": stored.tolist(), "straight": straight.tolist()}
        lens = Lens.from_json({"kind": kind[0], **plain, "distortion": distortion.tolist()})
        if fault := lens_fault(lens, (width, height)):
            raise DataError(f"The lens of {camera} in {path} {fault}; {_DOWNLOAD}")
    return View((width, height), straight, lens)


def check_class_list(path: Path) -> None:
    """Checks that the list of classes and colours, if it exists, is that of the release.

    Raises:
        DataError: it differs, or is damaged.
    """
    if not path.exists():
        return
    remedy = "unpack camera_lidar_semantic.tar again"
    found = {str(colour).lower(): str(name) for colour, name in read_object(path, "list of classes", remedy).items()}
    differing = sorted(set(found.items()) ^ set(A2D2_COLOURS.items()))
    if differing:
        colour, name = differing[0]
        raise DataError(
            f"{path} is not the list of A2D2's 55 classes: {len(differing)} differ, such as '{colour}: {name}';"
            f" {remedy}"
        )


def _matrix(values: dict[str, Any], name: str, size: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
    matrix = _numbers(values, name, 9).reshape(3, 3)
    if fault := intrinsics_fault(matrix) or size_fault(matrix, size):
        raise ValueError(f"{name} {fault}")
    return matrix


def _numbers(values: dict[str, Any], name: str, count: int) -> Float64[np.ndarray, "count"]:
    numbers = np.array(values[name], np.float64).ravel()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be {count} finite numbers, it is {values[name]}")
    return numbers

"""A frame in memory: a sweep and pictures given as arrays, in an index that is read like that of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from ...errors import DataError
from .calibration_checks import check_calibration
from .index import FrameIndex, FrameTable, ImageRow, ImageTable
from .projection import image_pixels as pixels
from .sweeps import Sweep

__all__ = ["MemoryIndex", "pixels", "read_sweep"]

_IMAGE = "give (picture, intrinsics, camera_from_lidar): uint8 [height, width, 3], [3, 3] in pixels, [4, 4] in metres"


@dataclass(frozen=True, kw_only=True)
class MemoryIndex(FrameIndex):
    """The index of one frame without files: its points, and a picture for each row of its image table."""

    sweep: Sweep
    pictures: tuple[UInt8[np.ndarray, "_height _width 3"], ...]

    @classmethod
    def of(
        cls,
        points: np.ndarray,
        images: Mapping[str, Any],
        *,
        dataset: str,
        cameras: Sequence[str],
        keys: Mapping[str, str],
    ) -> "MemoryIndex":
        """Returns the index of a frame that stands for one of ``dataset``, after all arrays are checked.

        ``points`` are floats [points, 3 or more], x, y and z first, in metres. ``images`` has for each camera the
        picture, uint8 [height, width, 3] in RGB; the intrinsics [3, 3] in its pixels; and camera_from_lidar [4, 4],
        which maps points in metres to the camera (x right, y down, z forward). ``cameras`` are the names that the
        network tells apart, in its order. ``keys`` has the key of a camera's image, by default the camera's name.

        Raises:
            DataError: an array has another shape or type, or a calibration is missing or wrong.
        """
        sweep = _sweep(points)
        given = {camera: _image(camera, images[camera]) for camera in sorted(images, key=list(cameras).index)}
        rows = [
            ImageRow(
                frame=0,
                key=keys.get(camera, camera),
                camera=camera,
                path="",
                size=(picture.shape[1], picture.shape[0]),
                intrinsics=intrinsics,
                camera_from_lidar=pose,
            )
            for camera, (picture, intrinsics, pose) in given.items()
        ]
        return cls(
            dataset=dataset,
            version="",
            root=Path.cwd(),  # no file is read
            cameras=tuple(cameras),
            frames=FrameTable(
                **dict.fromkeys(("location", "description", "split", "sweep", "labels"), np.array([""])),
                key=np.array(["the frame in memory"]),
                scene=np.array([""]),
            ),
            images=ImageTable.of(rows),
            sweep=sweep,
            pictures=tuple(picture for picture, _, _ in given.values()),
        )


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """Returns the points of the frame.

    Raises:
        TypeError: ``index`` is not a ``MemoryIndex``.
    """
    if not isinstance(index, MemoryIndex):
        raise TypeError(f"the index of {index.dataset} is not a MemoryIndex")
    return index.sweep


def _sweep(points: np.ndarray) -> Sweep:
    values = np.asarray(points)
    if values.ndim != 2 or values.shape[1] < 3 or values.dtype.kind != "f":
        raise DataError(
            f"points must be an array of floats [points, 3 or more], x, y and z in metres first; it is {_named(values)}"
        )
    sweep = Sweep.of(np.ascontiguousarray(values[:, :3]))
    if fault := "it is empty" if not len(values) else sweep.fault(max_unusable=1.0):
        raise DataError(f"The array of points cannot be used: {fault}")
    return sweep


def _image(
    camera: str, given: Any
) -> tuple[UInt8[np.ndarray, "_height _width 3"], Float64[np.ndarray, "3 3"], Float64[np.ndarray, "4 4"]]:
    if not isinstance(given, tuple | list) or len(given) != 3 or any(part is None for part in given):
        what = f"{len(given)} values" if isinstance(given, tuple | list) else f"a single {type(given).__name__}"
        raise DataError(f"The image of camera '{camera}' lacks its calibration (it is {what}); {_IMAGE}")
    picture, intrinsics, pose = map(np.asarray, given)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DataError(f"The picture of camera '{camera}' is {_named(picture)}; {_IMAGE}")
    for name, matrix, side in (("intrinsics", intrinsics, 3), ("camera_from_lidar", pose, 4)):
        if matrix.shape != (side, side) or matrix.dtype.kind not in "fiu":
            shape = f"{list(matrix.shape)} and type {matrix.dtype}"
            raise DataError(f"The matrix {name} of camera '{camera}' has shape {shape}; {_IMAGE}")
    intrinsics, pose = intrinsics.astype(np.float64), pose.astype(np.float64)
    size = (int(picture.shape[1]), int(picture.shape[0]))
    check_calibration(f"camera '{camera}'", intrinsics, pose, size, _IMAGE)
    return np.ascontiguousarray(picture), intrinsics, pose


def _named(array: np.ndarray) -> str:
    return f"{list(array.shape)} of {array.dtype}"

"""Sweeps: the points of one LiDAR rotation, read from their file formats.

| file | content |
|---|---|
| ``.bin`` | rows of four float32: x, y, z, intensity (KITTI, SynLiDAR) |
| ``.pcd.bin`` | rows of five float32: x, y, z, intensity, ring (nuScenes) |
| ``.npy`` | an array [points, 3 or more] of numbers, x, y and z first |
| ``.ply`` | vertices with x, y and z, ASCII or binary |
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from ...errors import DataError, MissingDataError
from .arrays import load_array
from .ply import parse_ply

__all__ = ["COLUMNS", "SWEEP_SUFFIXES", "Sweep", "finite_rows", "read_coordinates", "read_points", "sweep_suffix"]

#: Suffix of a raw file -> default number of float32 per point.
COLUMNS = {".pcd.bin": 5, ".bin": 4}

#: Suffixes of the files that ``read_points`` reads, longer ones first.
SWEEP_SUFFIXES = (".pcd.bin", ".bin", ".npy", ".ply")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The points of one rotation, and their pixels if the data set stores them."""

    points: Float32[np.ndarray, "points 3"]  #: metres, LiDAR frame
    pixels: Float64[np.ndarray, "points 2"] | None = None  #: x, y; pixel (0, 0) covers 0 to 1


def sweep_suffix(path: Path) -> str:
    """Returns the suffix of ``path`` among ``SWEEP_SUFFIXES``, or "" for another file type."""
    return next((suffix for suffix in SWEEP_SUFFIXES if path.name.lower().endswith(suffix)), "")


def read_points(path: Path, *, columns: int | None = None) -> Float32[np.ndarray, "points 3"]:
    """Returns every point of the sweep in ``path``, at least one, in the file's order: metres, LiDAR frame.

    ``columns``: float32 per point of a raw file, if it differs from the suffix's default (SemanticSTF: 5 in ``.bin``).
    NaN coordinates are returned as stored; see ``finite_rows``.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is of an unknown type, unreadable, truncated or damaged, or holds no point.
    """
    with np.errstate(over="ignore"):  # values beyond float32 become infinite; finite_rows finds them
        return read_coordinates(path, columns=columns).astype(np.float32, copy=False)


def read_coordinates(path: Path, *, columns: int | None = None) -> Float[np.ndarray, "points 3"]:
    """Returns the points in the precision of the file, float32 or float64, for clouds far from their origin.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is of an unknown type, unreadable, truncated or damaged, or holds no point.
    """
    suffix = sweep_suffix(path)
    if not suffix:
        raise DataError(f"{path} is not a readable sweep; its name must end in {', '.join(SWEEP_SUFFIXES)}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingDataError(
            f"The sweep {path} is missing; restore it (and run 'xd3d prepare' again, if it belongs to a data set)"
        ) from error
    except OSError as error:
        raise DataError(
            f"The sweep {path} cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error
    if suffix in COLUMNS:
        points = _raw(content, path, columns or COLUMNS[suffix])
    else:
        parse: Callable[[bytes, Path], np.ndarray] = parse_ply if suffix == ".ply" else _npy
        points = parse(content, path)
    if not len(points):
        raise DataError(f"The sweep {path} holds no point; copy it again, or leave it out")
    return points


def finite_rows(points: Float[np.ndarray, "points 3"]) -> Bool[np.ndarray, "points"]:
    """Returns which points have three finite coordinates; some sensors write NaN for rays without return."""
    return np.isfinite(points).all(axis=1)


def _raw(content: bytes, path: Path, columns: int) -> np.ndarray:
    row = columns * np.dtype(np.float32).itemsize
    if not content or len(content) % row:
        raise DataError(
            f"The sweep {path} is truncated, or of another format: it has {len(content)} bytes, not a multiple of {row}"
            f" ({columns} float32 per point); copy it again"
        )
    return np.frombuffer(content, "<f4").reshape(-1, columns)[:, :3]


def _npy(content: bytes, path: Path) -> np.ndarray:
    try:
        array = load_array(io.BytesIO(content))
    except ValueError as error:
        raise DataError(f"The sweep {path} cannot be read as a plain array ({error}); write it again") from error
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise DataError(
            f"The sweep {path} holds an array {list(array.shape)} of {array.dtype}; it needs numbers of shape"
            " [points, 3 or more], x, y and z first"
        )
    with np.errstate(over="ignore"):
        return array[:, :3].astype(np.float32 if array.dtype.type is np.float32 else np.float64)

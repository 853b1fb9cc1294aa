"""Sweeps: the points of a LiDAR's turn, read from the file formats that they are kept in.

| file | what it holds |
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

#: Suffix of a raw file -> float32 numbers a point, where nobody says otherwise.
COLUMNS = {".pcd.bin": 5, ".bin": 4}

#: Suffixes of the files that ``read_points`` reads, longer ones first.
SWEEP_SUFFIXES = (".pcd.bin", ".bin", ".npy", ".ply")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The points of one turn; where the data set itself says where they lie in its image, their pixels too."""

    points: Float32[np.ndarray, "points 3"]  #: metres, LiDAR frame
    pixels: Float64[np.ndarray, "points 2"] | None = None  #: x, y; pixel (0, 0) covers 0 to 1


def sweep_suffix(path: Path) -> str:
    """The suffix of ``path`` that is one of ``SWEEP_SUFFIXES``, or "" for a file of another kind."""
    return next((suffix for suffix in SWEEP_SUFFIXES if path.name.lower().endswith(suffix)), "")


def read_points(path: Path, *, columns: int | None = None) -> Float32[np.ndarray, "points 3"]:
    """Every point of the sweep in ``path``, at least one, in the file's order: metres, LiDAR frame.

    ``columns``: float32 numbers a point of a raw file, where its suffix does not say it (SemanticSTF: 5 in ``.bin``).
    Coordinates come as they are stored, NaN among them: see ``finite_rows``.

    Raises:
        MissingDataError: there is no such file.
        DataError: it is of an unknown kind, unreadable, truncated or damaged, or holds no point.
    """
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and finite_rows tells
        return read_coordinates(path, columns=columns).astype(np.float32, copy=False)


def read_coordinates(path: Path, *, columns: int | None = None) -> Float[np.ndarray, "points 3"]:
    """The same points in the precision of the file, for clouds far from their origin: float32, or float64.

    Raises:
        MissingDataError: there is no such file.
        DataError: it is of an unknown kind, unreadable, truncated or damaged, or holds no point.
    """
    suffix = sweep_suffix(path)
    if not suffix:
        raise DataError(f"{path} is no sweep that can be read; its name must end in {', '.join(SWEEP_SUFFIXES)}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingDataError(
            f"The sweep {path} is gone; put it back (and run 'xd3d prepare' again, if it belongs to a data set)"
        ) from error
    except OSError as error:
        raise DataError(
            f"The sweep {path} cannot be read ({error.strerror}); look at its rights and its disk"
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
    """Which points have three finite coordinates; some sensors write NaN for a ray that came back from nowhere."""
    return np.isfinite(points).all(axis=1)


def _raw(content: bytes, path: Path, columns: int) -> np.ndarray:
    row = columns * np.dtype(np.float32).itemsize
    if not content or len(content) % row:
        raise DataError(
            f"The sweep {path} is truncated, or of another format: it has {len(content)} bytes, not a multiple of {row}"
            f" ({columns} float32 a point); copy it again"
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

"""Sweeps: the points of one LiDAR rotation, read from their file formats.

| file | content |
|---|---|
| ``.bin`` | rows of four float32 (or float64): x, y, z, intensity (KITTI, SynLiDAR) |
| ``.pcd.bin`` | rows of five float32 (or float64): x, y, z, intensity, ring (nuScenes) |
| ``.npy`` | an array [points, 3 or more] of numbers, x, y and z first |
| ``.ply`` | vertices with x, y and z, ASCII or binary |
| ``.pcd`` | points of PCL, ASCII, binary or compressed (``point_files``) |
| ``.las``, ``.laz`` | points of surveyors (``point_files``) |
| ``BAG.mcap/TOPIC-TIME`` | a PointCloud2 message of a ROS 2 bag (``ros_bags``) |
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64

from ...errors import DataError, MissingDataError
from .checks import UNPACK, Remark, binary_fault
from .foreign_files import foreign_kind
from .npy_files import load_array
from .ply import parse_ply
from .point_files import parse_las, parse_pcd
from .raw_columns import COLUMNS, RawRows, RawType, are_doubles, guess_columns, implausible_fraction, stored_by_columns
from .ros_bags import bag_of, read_cloud

__all__ = [
    "COLUMNS",
    "SWEEP_SUFFIXES",
    "RawRows",
    "Sweep",
    "check_columns",
    "holds_doubles",
    "load_sweep",
    "points_fault",
    "raw_fault",
    "sweep_suffix",
    "usable_rows",
]

#: Suffixes of the files that ``load_sweep`` reads, longer ones first.
SWEEP_SUFFIXES = (".pcd.bin", ".bin", ".npy", ".ply", ".pcd", ".las", ".laz")

_DROPPED = "points have no usable coordinates (NaN, infinite, too coarse or kilometres off) and are left out"
_MISSING = "points have no usable coordinates, most of them {point} as for missing returns, and are left out"

#: Metres: below, two neighbouring float32 are less than 0.1 mm apart, and nothing is lost by rounding to them.
_NEAR = 1024.0

#: Type -> metres: beyond, two neighbouring numbers are more than 2.5 cm apart, half of a voxel of 5 cm.
_FAR = {"float32": 2.0**18, "float64": 2.0**47}

_DOUBLES = (
    "is of float64, and float32 are expected; convert it with numpy:"
    " np.fromfile(NAME, '<f8').astype('<f4').tofile(NAME). In a folder with a dataset.yaml, say there: dtype: float64"
)

#: Share of the coordinates of a raw sweep that are no lengths, from which its numbers are of another type.
_NO_LENGTHS = 0.1

#: Share of points at exactly (0, 0, 0), or at any other point, from which they are missing returns; a few change
#: nothing. Share above which a sweep is damaged: sensors that look at the sky store half of their rays so.
_RETURNS, _ALIKE, _EMPTY = 0.001, 0.01, 0.95

#: Points of a sweep, evenly taken, in which a point that occurs again and again is looked for.
_SAMPLE = 512

#: Numbers of a point in an array; one of fewer rows and more columns is transposed.
_MOST_COLUMNS = 64

#: Metres from the middle of a sweep beyond which a LiDAR sees nothing, and the share of points that may lie there.
_REACH, _STRAYS = 10_000.0, 0.01


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every point of one rotation, and the points' pixels if the data set stores them.

    ``points`` are metres in the LiDAR frame: float32, or float64 for clouds so far from their origin that float32
    would round them by more than 0.1 mm. They become float32 after their origin has been moved.
    """

    points: Float[np.ndarray, "points 3"]
    pixels: Float64[np.ndarray, "points 2"] | None = None  #: x, y; pixel (0, 0) covers 0 to 1
    guessed: RawRows | None = None  #: the rows of a raw file by its values, if not the default of its suffix

    @classmethod
    def of(cls, points: np.ndarray, pixels: np.ndarray | None = None) -> "Sweep":
        """Creates a sweep from ``points`` [P, 3] of any numeric dtype.

        Points are stored as float32, or as float64 if a coordinate is 1024 m or more and float32 would change a value.
        """
        if points.dtype != np.float32:
            points = points.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                narrow = points.astype(np.float32)
                finite = np.isfinite(points)
                far = (finite & (np.abs(points) >= _NEAR)).any()
            points = points if far and (narrow != points)[finite].any() else narrow
        return cls(points=points, pixels=pixels)

    @cached_property
    def usable(self) -> Bool[np.ndarray, "points"]:
        """Which points have usable coordinates; the others are dropped wherever points are used."""
        return usable_rows(self.points)

    @cached_property
    def missing(self) -> Bool[np.ndarray, "points"]:
        """Which points are rays without a return; they are not usable."""
        return _missing_returns(self.points)

    def only_usable(self) -> "Sweep":
        """Returns the sweep without the points that have no usable coordinates."""
        if self.usable.all():
            return self
        pixels = None if self.pixels is None else self.pixels[self.usable]
        return replace(self, points=self.points[self.usable], pixels=pixels)

    def fault(self, *, max_unusable: float = 0.5) -> str | None:
        """Describes the fault of a sweep with unusable coordinates; None if there is none.

        Up to the fraction ``max_unusable`` of the points may be unusable; missing returns do not count. With 1.0 it
        reports only sweeps without any usable point, and those in which nearly all returns are missing.
        """
        total, missing = len(self.points), self.missing
        returns, good = total - int(missing.sum()), int(self.usable.sum())
        if returns < (1 - _EMPTY) * total:
            point = _written(self.points[missing][0])
            return f"all but {returns} of its {total} points are {point}; copy it again, or leave it out"
        usable = self.points if good == total else self.points[self.usable]
        if (
            max_unusable < 1
            and good
            and np.ptp(usable) > 2 * _REACH
            and (wide := np.ptp(usable, axis=0).max()) > 2 * _REACH
        ):
            return f"its points are spread over {wide:.4g} m; coordinates must be in metres"
        if good == returns or (good and returns - good <= max_unusable * returns):
            return None
        bad = self.points[~self.usable & ~missing]
        finite = bad[np.isfinite(bad).all(axis=1)]
        if 2 * len(finite) < len(bad):
            return f"{f'only {good}' if good else 'not one'} of its {total} points has finite coordinates"
        top = np.abs(finite).max()
        return (
            f"its coordinates go up to {top:.4g} m in {top.dtype}, in steps of {np.spacing(top):g} m; store them from"
            " an origin near the sensor, or as float64"
        )


def usable_rows(points: Float[np.ndarray, "points 3"]) -> Bool[np.ndarray, "points"]:
    """Returns which points have three coordinates that are finite, precise to 2.5 cm, and no stray ones.

    Some sensors write NaN, or the same numbers (often (0, 0, 0)) of many points, for rays without return; float32 far
    from the origin is too coarse to tell voxels apart. A few points that lie kilometres from all others are errors of
    the sensor.
    """
    missing = _missing_returns(points)
    if not missing.any():
        return _usable_returns(points)
    usable = ~missing
    usable[usable] = _usable_returns(points[usable])
    return usable


def _missing_returns(points: Float[np.ndarray, "points 3"]) -> Bool[np.ndarray, "points"]:
    """Which points stand for rays without return: many at exactly (0, 0, 0), or very many at another point."""
    found = _at(points, np.zeros(3, points.dtype))
    if found.sum() > _RETURNS * len(points):
        return found
    sample = points[:: max(1, len(points) // _SAMPLE)]
    values, counts = np.unique(sample, axis=0, return_counts=True)
    if len(sample) >= _SAMPLE and counts.max() > 2 * _ALIKE * len(sample):
        alike = _at(points, values[counts.argmax()])
        if alike.sum() > _ALIKE * len(points):
            return alike
    return np.zeros(len(points), bool)


def _at(points: Float[np.ndarray, "points 3"], value: Float[np.ndarray, "3"]) -> Bool[np.ndarray, "points"]:
    """Which points are exactly ``value``."""
    found: np.ndarray = points[:, 0] == value[0]  # few are: the other columns are read for these alone
    found[found] = (points[found, 1:] == value[1:]).all(axis=1)
    return found


def _usable_returns(points: Float[np.ndarray, "points 3"]) -> Bool[np.ndarray, "points"]:
    with np.errstate(invalid="ignore"):
        # All near the origin, as nearly always: ten times as fast as what follows.
        if len(points) and points.min() > _REACH / -2 and points.max() < _REACH / 2:
            return np.ones(len(points), bool)
        near: np.ndarray = (np.abs(points) < _FAR[points.dtype.name]).all(axis=1)
    found = points if near.all() else points[near]
    if len(found) and np.ptp(found, axis=0).max() > _REACH:
        stray = near.copy()
        stray[near] = (np.abs(found - np.median(found, axis=0)) > _REACH).any(axis=1)
        if stray.sum() <= _STRAYS * len(points):
            near &= ~stray
    return near


def _written(point: Float[np.ndarray, "3"]) -> str:
    return f"({', '.join(f'{value:g}' for value in point.tolist())})"


def points_fault(read: Callable[[], Sweep]) -> str | Remark | None:
    """Returns the fault of the sweep that ``read`` reads, or a remark on its points that are not usable."""
    try:
        sweep = read()
    except (DataError, MissingDataError) as error:
        return str(error)
    dropped = ~sweep.usable
    count = int(dropped.sum())
    missing = sweep.points[sweep.missing]
    what = _MISSING.format(point=_written(missing[0])) if 2 * len(missing) > count else _DROPPED
    return sweep.fault() or (Remark(count, what, dropped=count) if count else None)


def raw_fault(path: Path, rows: RawRows, *, remedy: str = UNPACK) -> str | Remark | None:
    """Returns the fault of a raw sweep, or a remark on the number of its points that are not usable."""
    fault = binary_fault(path, "sweep", rows.bytes, remedy=remedy)
    if fault and path.is_file():
        content = path.read_bytes()
        if foreign := foreign_kind(path, content, sweep=True):
            return f"this {foreign}"
        return f"the sweep {_DOUBLES}" if rows.dtype == "float32" and holds_doubles(content) else fault
    return fault or points_fault(lambda: load_sweep(path, columns=rows.columns, dtype=rows.dtype))


def check_columns(paths: Sequence[Path], columns: int) -> None:
    """Checks the number of columns of raw float32 sweeps against their values.

    Raises:
        DataError: the values of all sweeps fit the same other number of columns.
    """
    contents = {path: path.read_bytes() for path in paths if path.is_file()}
    found = {
        guess_columns(np.frombuffer(content, "<f4", len(content) // 4), columns)
        for path, content in contents.items()
        if not (foreign_kind(path, content, sweep=True) or holds_doubles(content))  # reported by the file's check
    }
    if len(found) == 1 and columns not in found:
        (length,) = found
        raise DataError(
            f"The values of the sweeps, such as {paths[0]}, repeat after {length} numbers, and {columns} per point are"
            f" expected; convert them, or describe them as a folder of your own, with 'columns: {length}'"
            " (docs/data/folder.md)"
        )


def holds_doubles(content: bytes) -> bool:
    """Whether the ``content`` of a raw sweep is of float64, by its values."""
    return are_doubles(np.frombuffer(content, "<f4", len(content) // 4))


def sweep_suffix(path: Path) -> str:
    """Returns the suffix of ``path`` among ``SWEEP_SUFFIXES``, or "" for another file type."""
    return next((suffix for suffix in SWEEP_SUFFIXES if path.name.lower().endswith(suffix)), "")


def load_sweep(path: Path, *, columns: int | None = None, dtype: RawType | None = None) -> Sweep:
    """Returns every point of the sweep in ``path``, at least one, in the file's order.

    ``columns``: numbers per point of a raw file; by default that of the suffix, unless the values contradict it
    clearly (``guess_columns``). ``dtype``: their type, by default as the values are (``are_doubles``).

    Raises:
        MissingDataError: the file is missing.
        DataError: it is of an unknown type, unreadable, truncated or damaged, or holds no point.
    """
    suffix = sweep_suffix(path)
    if bag_of(path) is not None:
        return Sweep.of(_some(read_cloud(path), path))
    if not suffix:
        known = f"is not a readable sweep; its name must end in {', '.join(SWEEP_SUFFIXES)}"
        raise DataError(f"{path} {(foreign_kind(path) if path.is_file() else None) or known}")
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe would wait for ever
        raise DataError(f"The sweep {path} is not a regular file; replace it by the file it stands for")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        known = "is missing; restore it (and run 'xd3d prepare' again, if it belongs to a data set)"
        raise MissingDataError(f"The sweep {path} {foreign_kind(path) or known}") from error
    except OSError as error:
        raise DataError(
            f"The sweep {path} cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error
    if foreign := foreign_kind(path, content, sweep=True):
        raise DataError(f"The sweep {path} {foreign}")
    if suffix not in COLUMNS:
        return Sweep.of(_some(_PARSERS[suffix](content, path), path))
    points, rows = _raw(content, path, columns, dtype)
    expected = RawRows(columns or COLUMNS[suffix], dtype or "float32")
    return replace(Sweep.of(points), guessed=None if rows == expected else rows)


def _some(points: np.ndarray, path: Path) -> np.ndarray:
    if not len(points):
        raise DataError(f"The sweep {path} holds no point; copy it again, or leave it out")
    return points


def _raw(content: bytes, path: Path, columns: int | None, dtype: RawType | None) -> tuple[np.ndarray, RawRows]:
    """The points of a raw sweep, and its rows: as they are given, else as its values say."""
    if not content:
        raise DataError(f"The sweep {path} is empty; copy it again, or leave it out")
    doubles = holds_doubles(content)
    if doubles and dtype == "float32":
        raise DataError(f"The sweep {path} {_DOUBLES}")
    stored: RawType = dtype or ("float64" if doubles else "float32")
    kind = np.dtype(stored).newbyteorder("<")
    values = np.frombuffer(content, kind, len(content) // kind.itemsize)
    rows = RawRows(columns or guess_columns(values, COLUMNS[sweep_suffix(path)]), stored)
    if len(content) % rows.bytes:
        raise DataError(
            f"The sweep {path} is truncated, or of another format: it has {len(content)} bytes, not a multiple of"
            f" {rows.bytes} ({rows}); copy it again"
        )
    points = values.reshape(-1, rows.columns)[:, :3]
    if (share := implausible_fraction(points)) > _NO_LENGTHS:
        raise DataError(
            f"The sweep {path} is not of {rows}: {share:.0%} of such coordinates would be below 1e-7 or above 1e7 m; it"
            " may be of another type (float16, integers, big-endian, several). Write it as .npy, or as little-endian"
            " float32"
        )
    if stored_by_columns(values, rows.columns):
        raise DataError(
            f"The sweep {path} has all x first, then all y, and so on, and rows of {rows} are expected; convert it with"
            f" numpy: np.fromfile(NAME, '{kind.str}').reshape({rows.columns}, -1).T.tofile(NAME)"
        )
    return points, rows


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
    if len(array) <= _MOST_COLUMNS < array.shape[1]:
        raise DataError(
            f"The sweep {path} holds an array {list(array.shape)}, with a point per column; save its transpose, of"
            " shape [points, 3 or more]"
        )
    return array[:, :3].astype(array.dtype.newbyteorder("="))


_PARSERS: Mapping[str, Callable[[bytes, Path], np.ndarray]] = {
    ".npy": _npy,
    ".ply": parse_ply,
    ".pcd": parse_pcd,
    ".las": parse_las,
    ".laz": parse_las,
}

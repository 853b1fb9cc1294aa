"""Point files of PCL (``.pcd``: ASCII, binary, compressed) and of surveyors (``.las``, ``.laz``), read by libraries.

Both are extras: ``pip install 'xd3d[sweeps]'``.
"""

import io
import struct
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ConfigError, DataError

__all__ = ["Choose", "coordinates", "import_extra", "parse_las", "parse_pcd"]

#: Is given the names of all properties of the points, and returns those to read.
Choose = Callable[[Collection[str]], Sequence[str]]

#: What the libraries raise for damaged files, beside errors of their own.
_FAULTS = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
)


def coordinates(_: Collection[str]) -> Sequence[str]:
    """Chooses x, y and z."""
    return "xyz"


def import_extra(name: str, path: Path) -> Any:
    """Returns the module ``name`` of the extra ``sweeps``, which reads ``path``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{path} is read by {name.partition('.')[0]}; install it: pip install 'xd3d[sweeps]'"
        ) from error


def parse_pcd(content: bytes, path: Path, choose: Choose = coordinates) -> Float64[np.ndarray, "points properties"]:
    """Returns properties of the points of a PCD file, in the file's units; x, y and z by default.

    Raises:
        DataError: it is damaged, truncated, or has no such property.
        ConfigError: the library is not installed.
    """
    library = import_extra("pypcd4", path)
    try:
        cloud = library.PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(content)))
    except _FAULTS as error:
        raise _damaged(path, error) from error
    return _stack(path, cloud.fields, cloud.pc_data, cloud.metadata.points, choose)


def parse_las(content: bytes, path: Path, choose: Choose = coordinates) -> Float64[np.ndarray, "points properties"]:
    """Returns properties of the points of a LAS or LAZ file; coordinates are scaled and offset, as doubles.

    Raises:
        DataError: it is damaged, truncated, or has no such property.
        ConfigError: a library is not installed.
    """
    library, lazrs = import_extra("laspy", path), import_extra("lazrs", path)
    try:
        cloud = library.read(io.BytesIO(content))
    except (*_FAULTS, library.errors.LaspyException, lazrs.LazrsError) as error:
        raise _damaged(path, error) from error
    names = ["x", "y", "z", *(name for name in cloud.point_format.dimension_names if name not in ("X", "Y", "Z"))]
    return _stack(path, names, cloud, cloud.header.point_count, choose)


def _stack(path: Path, names: Sequence[str], table: Any, expected: int, choose: Choose) -> np.ndarray:
    chosen = list(choose(names))
    absent = [name for name in chosen if name not in names]
    if absent:
        raise DataError(f"{path} has no property {absent[0]}; its properties are: {', '.join(names)}")
    columns = [np.asarray(table[name], np.float64).reshape(-1) for name in chosen]
    if len(columns[0]) != expected:
        raise DataError(
            f"{path} is truncated: its header declares {expected} points, and it has {len(columns[0])}; copy it again"
        )
    return np.stack(columns, axis=1)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged or truncated ({str(error)[:200] or type(error).__name__}); copy it again")

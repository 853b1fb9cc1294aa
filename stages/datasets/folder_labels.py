"""Labels of a user's folder: one number per point, in a file of their own or in a column of the sweep.

The lower 16 bits of a number are the label, as in SemanticKITTI's ``.label``, whatever the file; the upper ones may be
an instance. A negative number is no label.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt16

from ...errors import DataError, MissingDataError, Xd3dError
from .foreign_files import is_text
from .label_files import other_type
from .npy_files import load_array
from .ply import parse_ply
from .point_files import parse_las, parse_pcd
from .raw_columns import COLUMNS, RawType

__all__ = ["NO_LABEL", "Field", "read_folder_labels"]

#: Raw id of a point without a label; ids of classes are below it.
NO_LABEL = 1 << 16

#: Name of a property, or number of a column from 0; None: the file holds labels alone, or one property is known.
Field = str | int | None

#: Names of properties that hold labels, in lower case.
_KNOWN = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "scalar_", "sem_", "semantic_")
    for name in ("label", "labels", "class", "classes", "classification", "semantic", "semantics", "category")
)

#: Suffix of files of points with named properties -> the function that reads them.
_TABLES = {".ply": parse_ply, ".pcd": parse_pcd, ".las": parse_las, ".laz": parse_las}

#: Type of the numbers of a raw file, where their size does not tell another.
_RAW = {".bin": "u1"}

#: Labels at even and at odd positions differ in number by at most this share of all.
_ALIKE = 0.5


def read_folder_labels(
    path: Path, points: int | None, field: Field = None, dtype: RawType = "float32"
) -> Int64[np.ndarray, "labels"]:
    """Returns the raw ids in ``path``: 0 to 65535, or ``NO_LABEL``.

    ``points``: number of points of the sweep, from which the type of a raw file is inferred; None if it is not known.
    ``field``: column of the labels in an array, a text or a raw sweep (of ``dtype``), or name of their property in
    another format.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is damaged, or does not hold one whole number per point.
    """
    try:
        values = _values(path, points, field, dtype)
    except Xd3dError:  # some are ValueError too
        raise
    except FileNotFoundError as error:
        raise MissingDataError(f"The label file {path} is missing; restore it, and prepare again") from error
    except (ValueError, OSError) as error:
        raise DataError(f"The label file {path} cannot be read ({error}); write it again") from error
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -1, values)
        if (values != np.round(values)).any() or np.abs(values).max(initial=0) >= 2**53:
            raise DataError(f"The label file {path} holds numbers that are not whole; write labels as integers")
    labels = values.astype(np.int64)
    return np.where(labels < 0, NO_LABEL, labels & 0xFFFF)


def _values(path: Path, points: int | None, field: Field, dtype: RawType) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return _TABLES[suffix](path.read_bytes(), path, lambda names: [_property(path, names, field)])[:, 0]
    if suffix == ".npy":
        return _array(path, load_array(path), field)
    content = path.read_bytes()
    if isinstance(field, int) and suffix in COLUMNS:
        kind = np.dtype(dtype).newbyteorder("<")
        if not points or len(content) % (kind.itemsize * points):
            raise ValueError(f"it has {len(content)} bytes for {points} points")
        return _array(path, np.frombuffer(content, kind).reshape(points, -1), field)
    if suffix == ".txt":
        return _array(path, np.loadtxt(content.decode("utf-8-sig").splitlines(), ndmin=2), field)
    if suffix != ".bin" and is_text(content):
        raise ValueError("it is text; name it .txt, with one number per line")
    if suffix not in (".bin", ".label") and points and len(content) not in (2 * points, 4 * points, 8 * points):
        raise ValueError(f"labels are no files of '{suffix}'; save them as .npy, .txt or .label")
    return _raw(content, points or 0, _RAW.get(suffix, "<u4"))


def _raw(content: bytes, points: int, dtype: str) -> np.ndarray:
    """Numbers of ``dtype``, or of the 16, 32 or 64 bits that are there per point."""
    if points and len(content) == 2 * points:
        narrow = np.frombuffer(content, "<u2")
        if not _are_halves(narrow):
            return narrow
    if len(content) == 8 * points:
        wide = np.frombuffer(content, "<i8")
        if (np.abs(wide) < 1 << 32).all():  # else twice as many labels of 32 bits
            return wide
    used = np.dtype("<u4" if len(content) == 4 * points else dtype)
    if points and len(content) == points and used.itemsize > 1:
        raise ValueError(f"it has one byte for each of {points} points; name it .bin, or write uint32")
    if not content or len(content) % used.itemsize:
        raise ValueError(f"it is truncated: {len(content)} bytes, not a multiple of {used.itemsize}")
    values = np.frombuffer(content, used)
    if used.itemsize == 4 and (found := other_type(values)):
        raise ValueError(f"its numbers are {found}; write uint32, in little-endian order")
    return values


def _are_halves(values: UInt16[np.ndarray, "labels"]) -> bool:
    """Whether ``values`` are rather labels of 32 bits: every second one is an instance, or 0, and no label."""
    if len(values) % 2:
        return False
    counts = [np.bincount(values[start::2], minlength=NO_LABEL) for start in (0, 1)]
    return int(np.abs(counts[0] - counts[1]).sum()) > _ALIKE * len(values)


def _array(path: Path, array: np.ndarray, field: Field) -> np.ndarray:
    wide = array.ndim == 2 and array.shape[1] > 1
    if wide and isinstance(field, int) and field < array.shape[1]:
        return array[:, field]
    if wide or array.ndim not in (1, 2) or array.dtype.kind not in "iufb":
        needs = (
            "its rows sum to 1, so they are one-hot or probabilities: save their argmax(axis=1)"
            if wide and array.dtype.kind in "iufb" and np.allclose(array.sum(axis=1), 1)
            else "or the number of the column of labels (from 0): 'label_field' in dataset.yaml"
        )
        raise DataError(
            f"The label file {path} holds an array {list(array.shape)} of {array.dtype}; it needs one number per point,"
            f" {needs}"
        )
    return array.reshape(-1)


def _property(path: Path, names: Collection[str], field: Field) -> str:
    """The property that holds the labels: ``field``, or the only one with a name that is known for it."""
    known = [name for name in names if (name == field if field is not None else name.lower() in _KNOWN)]
    if len(known) != 1:
        raise DataError(
            f"The label file {path} has the properties {', '.join(names)}; name the one of the labels: 'label_field' in"
            " dataset.yaml"
        )
    return known[0]

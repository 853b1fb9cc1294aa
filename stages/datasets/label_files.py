"""Label files: arrays of one number per point in the order of the sweep, and label images of one colour per class."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt, UInt8, UInt32
from PIL import Image

from ...errors import DataError
from .checks import UNDECODABLE, Check, Faults, binary_fault, image_checks, missing_since_indexed, run_checks
from .index import FrameIndex
from .sweeps import RawRows, check_columns, holds_doubles, raw_fault

__all__ = ["ColourTable", "check_raw_files", "other_type", "read_colours", "read_raw_labels"]

_LOOKED_AT = 8  #: sweeps whose values tell their columns


def read_raw_labels(path: Path, dtype: str) -> UInt[np.ndarray, "points"]:
    """Returns the raw labels in ``path``, stored as the numpy type ``dtype``: "u1", or "<u4".

    Of "<u4" the lower 16 bits are the label; the upper ones are the instance.

    Raises:
        MissingDataError: the file is missing.
        DataError: its length is not a multiple of the item size.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise missing_since_indexed("label file", path) from error
    size = np.dtype(dtype).itemsize
    if len(content) % size:
        raise DataError(
            f"The label file {path} is truncated: it has {len(content)} bytes, not a multiple of {size}; copy it again"
        )
    labels = np.frombuffer(content, dtype)
    return labels & 0xFFFF if size > 1 else labels


def _label_fault(path: Path, dtype: str, sweep: Path, row_bytes: int, ids: Collection[int]) -> str | None:
    """Returns the fault of the label file in ``path``, or None: it must hold one label of ``ids`` per point.

    Other ids tell of labels of another data set in the same layout.
    """
    whole = binary_fault(sweep, "sweep", row_bytes) is None
    points = sweep.stat().st_size // row_bytes if whole else None
    fault = binary_fault(path, "label file", np.dtype(dtype).itemsize, points) or _id_fault(path, dtype, ids)
    return None if fault and whole and holds_doubles(sweep.read_bytes()) else fault  # the sweep's fault is reported


def _id_fault(path: Path, dtype: str, ids: Collection[int]) -> str | None:
    counts = np.bincount(read_raw_labels(path, dtype), minlength=max(ids) + 1)
    zeros = counts[0] == counts.sum()
    counts[list(ids)] = 0
    unknown = np.flatnonzero(counts)
    if dtype == "<u4" and (zeros or len(unknown)) and (found := other_type(np.fromfile(path, dtype))):
        return f"the numbers in the label file are {found}, and uint32 are expected; convert them with numpy"
    if not len(unknown):
        return None
    return (
        f"the label file has {int(counts.sum())} labels that are not ids of the data set, such as {unknown[0]};"
        " it may belong to another data set. Unpack the download again"
    )


def other_type(stored: UInt32[np.ndarray, "points"]) -> str | None:
    """Returns what labels read as uint32 are instead, or None; of such labels the lower 16 bits would always be 0."""
    labels = stored[stored != 0]
    if not len(labels):
        return None
    with np.errstate(invalid="ignore"):
        floats = labels.view("<f4")
        if ((np.abs(floats) < 1 << 32) & (np.abs(floats) >= 1) & (floats == np.round(floats))).all():
            return "of float32"
    return None if (labels & 0xFFFF).any() else "in big-endian order"


def check_raw_files(index: FrameIndex, *, columns: int, dtype: str, ids: Collection[int]) -> Faults:
    """Checks every file of an index of raw sweeps: ``columns`` float32 per point, and a ``dtype`` in ``ids``.

    Raises:
        DataError: the values of a sample of unlabelled sweeps all fit the same other number of columns. (Labelled
            sweeps are checked against the number of their labels.)
    """
    unlabelled = index.frames.sweep[index.frames.labels == ""]
    few = unlabelled[:: max(1, -(-len(unlabelled) // _LOOKED_AT))]
    check_columns([index.root / str(sweep) for sweep in few], columns)
    files = len(index.frames.key) + np.count_nonzero(index.frames.labels != "") + len(index.images.key)
    return run_checks(_checks(index, columns, dtype, ids), int(files))


def _checks(index: FrameIndex, columns: int, dtype: str, ids: Collection[int]) -> Iterator[Check]:
    for row, (sweep, labels) in enumerate(zip(index.frames.sweep, index.frames.labels, strict=True)):
        path, labelled = index.root / str(sweep), index.root / str(labels)
        yield path, partial(raw_fault, path, RawRows(columns))
        if labels:
            yield labelled, partial(_label_fault, labelled, dtype, path, 4 * columns, ids)
        yield from image_checks(index, row)


@dataclass(frozen=True, kw_only=True)
class ColourTable:
    """A lookup from colours to class numbers."""

    packed: Int64[np.ndarray, "colours"]  #: ascending
    numbers: Int64[np.ndarray, "colours"]

    @classmethod
    def of(cls, colours: Sequence[tuple[int, ...]], numbers: Sequence[int] | None = None) -> "ColourTable":
        """Returns the table of (red, green, blue) ``colours`` with ``numbers``, 0, 1, 2 ... by default."""
        packed = _pack(np.array(colours, np.uint8).reshape(-1, 3))
        order = np.argsort(packed)
        values = np.arange(len(packed)) if numbers is None else np.array(numbers, np.int64)
        return cls(packed=packed[order], numbers=values[order])

    def find(self, colours: UInt8[np.ndarray, "pixels 3"]) -> Int64[np.ndarray, "pixels"]:
        """Returns the number of each colour, or -1."""
        packed = _pack(colours)
        index = np.minimum(np.searchsorted(self.packed, packed), len(self.packed) - 1)
        return np.where(self.packed[index] == packed, self.numbers[index], -1)


def read_colours(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the colours of the label image in ``path``.

    Raises:
        MissingDataError: the file is missing.
        DataError: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise missing_since_indexed("label image", path) from error
    except UNDECODABLE as error:
        raise DataError(f"The label image {path} cannot be decoded ({error}); copy it again") from error


def _pack(colours: UInt8[np.ndarray, "pixels 3"]) -> Int64[np.ndarray, "pixels"]:
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])

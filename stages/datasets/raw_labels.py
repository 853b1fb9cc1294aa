"""Label files: one number a point, in the order of the sweep; and the checks of both."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from ...errors import DataError, MissingDataError
from .checks import Check, FileFault, binary_fault, image_fault, run_checks
from .index import FrameIndex

__all__ = ["check_raw_files", "label_fault", "read_raw_labels"]


def read_raw_labels(path: Path, dtype: str) -> UInt[np.ndarray, "points"]:
    """The raw labels in ``path``, numbers of the numpy type ``dtype``: "u1", or "<u4".

    Of four bytes the lower two are taken: the upper ones number instances.

    Raises:
        MissingDataError: there is no such file.
        DataError: its length is no multiple of a label's.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingDataError(
            f"The label file {path} is gone since the data set was indexed; put it back, or run 'xd3d prepare' again"
        ) from error
    size = np.dtype(dtype).itemsize
    if len(content) % size:
        raise DataError(
            f"The label file {path} is truncated: it has {len(content)} bytes, not a multiple of {size}; copy it again"
        )
    labels = np.frombuffer(content, dtype)
    return labels & 0xFFFF if size > 1 else labels


def label_fault(path: Path, dtype: str, points: int | None, ids: Collection[int] | None = None) -> str | None:
    """What is wrong with the label file in ``path``; None if nothing.

    It must hold one label for each of ``points`` (None where the sweep itself is at fault), and no other than ``ids``
    where they are given: labels of another data set in the same layout are noticed by that.
    """
    fault = binary_fault(path, "label file", np.dtype(dtype).itemsize, points)
    if fault or ids is None:
        return fault
    counts = np.bincount(read_raw_labels(path, dtype), minlength=max(ids) + 1)
    counts[list(ids)] = 0
    strange = np.flatnonzero(counts)
    if not len(strange):
        return None
    return (
        f"the label file has {int(counts.sum())} labels that are no id of the data set, {strange[0]} among them;"
        " is it of another one? Unpack the download again"
    )


def check_raw_files(index: FrameIndex, *, row_bytes: int, dtype: str, ids: Collection[int]) -> list[FileFault]:
    """Look at every file of an index of raw sweeps: ``row_bytes`` a point, a label of ``dtype`` in ``ids`` a point."""
    files = len(index.frames.key) + np.count_nonzero(index.frames.labels != "") + len(index.images.key)
    return run_checks(_checks(index, row_bytes, dtype, ids), int(files))


def _checks(index: FrameIndex, row_bytes: int, dtype: str, ids: Collection[int]) -> Iterator[Check]:
    for row, (sweep, labels) in enumerate(zip(index.frames.sweep, index.frames.labels, strict=True)):
        path, labelled = index.root / str(sweep), index.root / str(labels)
        yield path, partial(binary_fault, path, "sweep", row_bytes)
        if labels:
            yield labelled, partial(_sweep_label_fault, labelled, dtype, path, row_bytes, ids)
        for image in index.images_of(row):
            width, height = index.images.size[image]
            path = index.root / str(index.images.path[image])
            yield path, partial(image_fault, path, (int(width), int(height)))


def _sweep_label_fault(labels: Path, dtype: str, sweep: Path, row_bytes: int, ids: Collection[int]) -> str | None:
    whole = binary_fault(sweep, "sweep", row_bytes) is None
    return label_fault(labels, dtype, sweep.stat().st_size // row_bytes if whole else None, ids)

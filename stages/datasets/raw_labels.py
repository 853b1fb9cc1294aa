"""Label files: one number a point, in the order of the sweep."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from ...errors import DataError, MissingDataError
from .checks import binary_fault

__all__ = ["label_fault", "read_raw_labels"]


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

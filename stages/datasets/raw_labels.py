"""Label files: one number a point, in the order of the sweep."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt

from ...errors import DataError, MissingDataError

__all__ = ["read_raw_labels"]


def read_raw_labels(path: Path, dtype: str) -> UInt[np.ndarray, "points"]:
    """The raw labels in ``path``, numbers of the numpy type ``dtype`` such as "<u4".

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
    return np.frombuffer(content, dtype)

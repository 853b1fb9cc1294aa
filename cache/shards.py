"""Shard files: the contiguous rows of one array, and the Zarr shard index at the end.

The index has offset and length (uint64, little endian; all ones for an empty slot) of every slot, then its own crc32c.
"""

from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO

import google_crc32c
import numpy as np

from ..errors import CacheError
from .stores.base import StoredFile

__all__ = ["check_index", "write_rows"]

_EMPTY = np.iinfo(np.uint64).max


@lru_cache(maxsize=64)
def _index(slots: int, rows: int, row_bytes: int) -> bytes:
    """The index of a shard whose first ``rows`` slots hold rows of equal length, in order."""
    entries = np.full((slots, 2), _EMPTY, dtype="<u8")
    entries[:rows, 0] = np.arange(rows, dtype=np.uint64) * row_bytes
    entries[:rows, 1] = row_bytes
    data = entries.tobytes()
    return data + google_crc32c.value(data).to_bytes(4, "little")


def write_rows(file: BinaryIO | BytesIO, rows: Iterable[np.ndarray], slots: int) -> list[int]:
    """Writes contiguous little-endian ``rows`` of equal size and the index; returns the crc32c of each row."""
    checksums: list[int] = []
    row_bytes = 0
    for row in rows:
        data = row.reshape(-1).view(np.uint8)
        file.write(data.data)
        checksums.append(google_crc32c.value(data))
        row_bytes = data.nbytes
    file.write(_index(slots, len(checksums), row_bytes))
    return checksums


def check_index(file: StoredFile, *, slots: int, rows: int, row_bytes: int) -> None:
    """Checks that a shard of ``slots`` slots holds ``rows`` rows back to back in order, as the writer leaves them.

    Raises:
        CacheError: the file is too short, or its index is damaged or describes other rows.
    """
    expected = _index(slots, rows, row_bytes)
    start = file.size - len(expected)
    if start < 0:
        raise CacheError(f"the file has {file.size} bytes, too few for the index of a shard")
    data = np.empty(len(expected), np.uint8)
    file.read_into(data, start)
    if data.tobytes() != expected:
        raise CacheError(f"the shard index at byte {start} is damaged: it is not what the writer made")

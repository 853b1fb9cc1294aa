"""Shard files: the contiguous rows of one array, and the Zarr shard index at the end.

The index has offset and length (uint64, little endian; all ones for an empty slot) of every slot, then its own crc32c.
"""

from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from jaxtyping import UInt8

from ..errors import CacheError
from .stores.base import StoredFile

__all__ = ["ShardFile", "write_rows"]

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


class ShardFile:
    """An open shard file. Threads may share it.

    ``entries`` is its index, uint64 [slots, 2], or None where all rows lie back to back in order, as the writer leaves
    them; a caller that opens a file again may set what ``load_index`` gave before. With ``whole``, a row that is not
    in memory lets the disk fetch the whole file.
    """

    def __init__(self, *, file: StoredFile, row_bytes: int, whole: bool = False) -> None:
        self._file = file
        self._whole = whole
        self.row_bytes = row_bytes
        self.entries: np.ndarray[Any, np.dtype[np.uint64]] | None = None

    def load_index(self, slots: int, rows: int) -> np.ndarray[Any, np.dtype[np.uint64]] | None:
        """Reads the index of a shard with ``slots`` slots, the first ``rows`` of them in use, into ``entries``.

        Raises:
            CacheError: the file is too short, or the index does not match its checksum.
        """
        expected = _index(slots, rows, self.row_bytes)
        start = self._file.size - len(expected)
        if start < 0:
            raise CacheError(f"the file has {self._file.size} bytes, too few for the index of a shard")
        data = np.empty(len(expected), np.uint8)
        self._file.read_into(data, start)
        if data.tobytes() != expected:
            if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:].tobytes(), "little"):
                raise CacheError(f"the shard index at byte {start} is damaged: it does not match its checksum")
            self.entries = data[:-4].view("<u8").reshape(-1, 2)
        return self.entries

    def read(self, slot: int, out: UInt8[np.ndarray, "bytes"], *, wait: bool = True) -> bool:
        """Fill ``out`` (contiguous) with the row in ``slot``; where ``entries`` is None also with the rows after it.

        Without ``wait`` only where that is possible at once; the rest is asked for. Returns whether ``out`` is filled.

        Raises:
            CacheError: the file ends early, or the slot is empty.
        """
        offset = slot * self.row_bytes
        if self.entries is not None:
            offset, length = (int(value) for value in self.entries[slot])
            if length != self.row_bytes or offset + length > self._file.size:
                raise CacheError(f"slot {slot} of the shard holds no row of {self.row_bytes} bytes")
        if not wait:
            return self._file.begin(out, offset, whole=self._whole)
        self._file.read_into(out, offset)
        return True

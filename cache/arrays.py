"""Shard files: writes them, and reads rows of one stored array directly from them.

A shard file has contiguous rows of one array, then the Zarr shard index: offset and length (uint64, little endian; all
ones for an empty slot) of every slot, then its own crc32c.

The values of a row must match the crc32c in the commit record; each row is checked when this process reads it for the
first time. Agent indices are checked against the number of agents at every read.
"""

import weakref
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO

import google_crc32c
import numpy as np
from jaxtyping import UInt8, UInt16, UInt32

from ..errors import CacheError
from .layout import ArrayLayout, CacheLayout
from .schema import ASSIGNMENT
from .stores import Store, StoredFile
from .stores.base import Version

__all__ = ["DamagedRowError", "Run", "StoredArray", "check_agent_indices", "check_index", "runs_of", "write_rows"]

_EMPTY = np.iinfo(np.uint64).max
Run = tuple[int, int, int]  #: first batch index, first row of the cache, number of rows; all in one shard


def runs_of(rows: Iterable[int], images_per_shard: int) -> list[Run]:
    """Groups the rows of a batch into runs that are consecutive in one shard, one read each."""
    runs: list[Run] = []
    index, start, count = 0, -1, 0
    for row in rows:
        if row == start + count and row % images_per_shard:
            count += 1
            continue
        if count:
            runs.append((index, start, count))
            index += count
        start, count = row, 1
    if count:
        runs.append((index, start, count))
    return runs


class StoredArray:
    """Rows of one array with valid metadata (``verify.refuse_damaged_metadata``); safe to share between threads."""

    def __init__(self, *, store: Store, array: ArrayLayout, layout: CacheLayout, whole_shards: bool = False) -> None:
        self.array = array
        self._store = store
        self._layout = layout
        self._size = array.row_bytes
        self._whole = whole_shards
        self._checked = bytearray(layout.images)
        self._unchecked = True
        self._known: dict[int, Version] = {}
        _arrays.add(self)
        self._keep_open(self._share)

    def file_of(self, row: int) -> str:
        """Returns the file of ``row``, relative to the cache."""
        return self.array.shard_file(row // self._layout.images_per_shard)

    def forget(self) -> None:
        """Closes files and forgets which rows were checked, because shards were rewritten."""
        self._checked = bytearray(self._layout.images)
        self._unchecked = True
        self._known.clear()
        self._open.cache_clear()

    def read_cached(self, runs: Iterable[Run], out: np.ndarray, checksums: UInt32[np.ndarray, "images"]) -> list[Run]:
        """Reads the runs that are in the page cache; starts readahead for the others and returns the others.

        The disk can then fetch all rows of a batch concurrently.
        """
        data = out.reshape(-1).view(np.uint8)
        return [run for run in runs if not self._take(run, data, checksums, wait=False)]

    def read(self, runs: Iterable[Run], out: np.ndarray, checksums: UInt32[np.ndarray, "images"]) -> None:
        """Fills ``out`` [rows, ...] (contiguous) with the rows of ``runs``.

        ``checksums`` holds the crc32c of every row of the cache.

        Raises:
            DamagedRowError: a row cannot be read, does not match its checksum, or has an agent index out of range.
        """
        data = out.reshape(-1).view(np.uint8)
        for run in runs:
            self._take(run, data, checksums, wait=True)

    def _take(
        self, run: Run, data: UInt8[np.ndarray, "bytes"], checksums: UInt32[np.ndarray, "images"], *, wait: bool
    ) -> bool:
        """Reads and checks the rows of ``run``; returns False if they are not in memory and ``wait`` is False."""
        index, row, count = run
        size = self._size
        target = data[index * size : (index + count) * size]
        if not self._read_shard(row, target, wait):
            return False
        if self._unchecked:
            self._check(row, target, checksums)
        if self.array.name == ASSIGNMENT:
            self._check_agents(row, target.view(self.array.dtype).reshape(count, -1))
        return True

    def _check(self, first: int, data: UInt8[np.ndarray, "bytes"], checksums: UInt32[np.ndarray, "images"]) -> None:
        size = self._size
        for i, row in enumerate(range(first, first + data.nbytes // size)):
            if self._checked[row]:
                continue
            found = google_crc32c.value(data[i * size : (i + 1) * size])
            if found != checksums[row]:
                raise DamagedRowError(
                    row, f"its values have crc32c {found:08x}, the commit record says {checksums[row]:08x}"
                )
            self._checked[row] = 1
        self._unchecked = 0 in self._checked

    def _check_agents(self, first: int, rows: np.ndarray) -> None:
        try:
            check_agent_indices(rows, self._layout.agents)
        except CacheError as error:
            raise DamagedRowError(first + int(rows.max(axis=1).argmax()), str(error)) from error

    @property
    def _share(self) -> int:
        """Number of files that this array may keep open: all arrays that this process reads share the limit."""
        return max(1, self._store.open_files // len(_arrays))

    def _keep_open(self, files: int) -> None:
        self._open = lru_cache(maxsize=files)(self._open_shard)

    def _open_shard(self, index: int) -> StoredFile:
        """Opens a shard; its index is read and its rows are checked only once while the file stays the same."""
        if (share := self._share) != self._open.cache_info().maxsize:
            self._keep_open(share)
        file = self._store.open(self.array.shard_file(index))
        version = self._known.get(index)
        if version != file.version:
            rows = self._layout.shard(index).rows
            if version is not None:
                self._checked[rows.start : rows.stop] = bytes(len(rows))
                self._unchecked = True
            check_index(file, slots=self._layout.images_per_shard, rows=len(rows), row_bytes=self._size)
            self._known[index] = file.version
        return file

    def _read_shard(self, row: int, data: UInt8[np.ndarray, "bytes"], wait: bool) -> bool:
        index, slot = divmod(row, self._layout.images_per_shard)
        try:
            file = self._open(index)
            if not wait:
                return file.read_if_cached(data, slot * self._size, whole=self._whole)
            file.read_into(data, slot * self._size)
        except CacheError as error:
            raise DamagedRowError(row, str(error)) from error
        return True


_arrays: "weakref.WeakSet[StoredArray]" = weakref.WeakSet()  #: arrays open in this process


class DamagedRowError(CacheError):
    """A damaged row; the reader adds the image key and the file to the message."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        self.reason = reason


def check_agent_indices(assignment: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."], agents: int) -> None:
    """Checks that every index of ``assignment`` is below ``agents``.

    Raises:
        CacheError: an index is out of range.
    """
    largest = int(assignment.max(initial=0))
    if largest >= agents:
        raise CacheError(f"{ASSIGNMENT} names agent {largest} of {agents}, counted from 0")


@lru_cache(maxsize=64)
def _index(slots: int, rows: int, row_bytes: int) -> bytes:
    """The index of a shard whose first ``rows`` slots hold rows of equal length, in order."""
    entries = np.full((slots, 2), _EMPTY, dtype="<u8")
    entries[:rows, 0] = np.arange(rows, dtype=np.uint64) * row_bytes
    entries[:rows, 1] = row_bytes
    data = entries.tobytes()
    return data + google_crc32c.value(data).to_bytes(4, "little")


def write_rows(file: BinaryIO | BytesIO, rows: Iterable[np.ndarray], slots: int) -> list[int]:
    """Writes ``rows`` and the index of a shard with ``slots`` slots; returns the crc32c of each row.

    The rows are contiguous little-endian arrays of one shape and dtype, at most ``slots`` of them.
    """
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

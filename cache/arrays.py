"""Reads rows of one stored array: directly from its shards, or through zarr if it was stored with another codec.

In both cases the values of a row must match the crc32c in the commit record; each row is checked when this process
reads it for the first time. Agent indices are checked against the number of agents at every read.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import UInt8, UInt32

from ..errors import CacheError
from .layout import ASSIGNMENT, ArrayLayout, CacheLayout
from .metadata import array_is_plain
from .rows import check_agent_indices
from .shards import ShardFile
from .stores.base import Store, Version

__all__ = ["DamagedRowError", "Run", "StoredArray", "runs_of"]

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
    """Rows of one array; safe to share between threads.

    Raises:
        CacheError: the array's metadata is missing, damaged, or describes another array.
    """

    def __init__(self, *, store: Store, array: ArrayLayout, layout: CacheLayout, whole_shards: bool = False) -> None:
        self.array = array
        self.is_plain = array_is_plain(store, array, layout)
        self._store = store
        self._layout = layout
        self._size = array.row_bytes
        self._whole = whole_shards
        self._checked = bytearray(layout.images)
        self._unchecked = True
        self._known: dict[int, tuple[Version, np.ndarray | None]] = {}
        self._open = lru_cache(maxsize=max(4, store.open_files // len(layout.arrays)))(self._open_shard)
        self._zarr: Any = None
        if not self.is_plain:
            # This starts the event loop of zarr; a fork while another thread starts it would leave its lock held.
            with suppress(Exception):  # the error is reported when a row is read
                self._zarr = self._open_zarr()

    def file_of(self, row: int) -> str:
        """Returns the file of ``row``, relative to the cache; for an array with another codec its folder."""
        return self.array.shard_file(row // self._layout.images_per_shard) if self.is_plain else self.array.path

    def forget(self) -> None:
        """Closes files and forgets which rows were checked, because shards were rewritten."""
        self._checked = bytearray(self._layout.images)
        self._unchecked = True
        self._known.clear()
        self._open.cache_clear()
        self._zarr = None

    def begin(self, runs: Iterable[Run], out: np.ndarray, checksums: UInt32[np.ndarray, "images"]) -> list[Run]:
        """Reads the rows that are in the page cache, starts reading ahead for the others, and returns those.

        The disk can then fetch all rows of a batch concurrently.
        """
        if not self.is_plain:
            return list(runs)
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
            if not self.is_plain:
                self._read_zarr(run, out)
            self._take(run, data, checksums, wait=True)

    def _take(
        self, run: Run, data: UInt8[np.ndarray, "bytes"], checksums: UInt32[np.ndarray, "images"], *, wait: bool
    ) -> bool:
        """Reads and checks the rows of ``run``; returns False if they are not in memory and ``wait`` is False."""
        index, row, count = run
        size = self._size
        target = data[index * size : (index + count) * size]
        if self.is_plain and not self._read_shard(row, count, target, wait):
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

    def _open_shard(self, index: int) -> ShardFile:
        """Opens a shard; its index is read and its rows are checked only once while the file stays the same."""
        file = self._store.open(self.array.shard_file(index))
        shard = ShardFile(file=file, row_bytes=self._size, whole=self._whole)
        version, entries = self._known.get(index, (None, None))
        if version == file.version:
            shard.entries = entries
            return shard
        rows = self._layout.shard(index).rows
        if version is not None:
            self._checked[rows.start : rows.stop] = bytes(len(rows))
            self._unchecked = True
        self._known[index] = file.version, shard.load_index(self._layout.images_per_shard, len(rows))
        return shard

    def _read_shard(self, row: int, count: int, data: UInt8[np.ndarray, "bytes"], wait: bool) -> bool:
        index, slot = divmod(row, self._layout.images_per_shard)
        try:
            shard = self._open(index)
            if count == 1 or shard.entries is None:
                return shard.read(slot, data, wait=wait)
            size = self._size
            parts = [data[i * size : (i + 1) * size] for i in range(count)]
            return all([shard.read(slot + i, part, wait=wait) for i, part in enumerate(parts)])  # noqa: C419 - start every read
        except CacheError as error:
            raise DamagedRowError(row, str(error)) from error

    def _open_zarr(self) -> Any:
        import zarr

        return zarr.open_array(self._store.zarr(), path=self.array.path, mode="r")

    def _read_zarr(self, run: Run, out: np.ndarray) -> None:
        index, row, count = run
        try:
            if self._zarr is None:
                self._zarr = self._open_zarr()
            out[index : index + count] = self._zarr[row : row + count]
        except Exception as error:
            raise DamagedRowError(row, f"zarr cannot read it ({type(error).__name__}: {error})") from error


class DamagedRowError(CacheError):
    """A damaged row; the reader adds the image key and the file to the message."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        self.reason = reason

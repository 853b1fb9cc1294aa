"""The interface of a storage backend.

Keys are paths inside the cache, separated by ``/``: ``done/3.json``, ``features/up1/c/0/0/0/0``. Files are written
atomically and never modified, only replaced.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

__all__ = ["Files", "Lock", "Stage", "Store", "StoredFile", "Version"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Version = tuple[int | str, ...]  #: distinguishes a file from one that replaced it under the same name


@runtime_checkable
class StoredFile(Protocol):
    """A file open for reading; threads may share it. If it is replaced, reads use the old file or raise."""

    size: int  #: bytes
    version: Version

    def read_into(self, out: UInt8[np.ndarray, "bytes"], offset: int) -> None:
        """Fills ``out`` (contiguous) with the bytes from ``offset`` on.

        Raises:
            CacheError: the file ends early, or the device failed.
        """

    def read_if_cached(self, out: UInt8[np.ndarray, "bytes"], offset: int, *, whole: bool) -> bool:
        """Fills ``out`` if its bytes are in memory; otherwise starts reading ahead and returns False.

        ``whole`` allows reading ahead the whole file, whose other bytes are needed soon.
        """


@runtime_checkable
class Stage(Protocol):
    """A set of files that are all written before the first one is published."""

    def write(self, key: str, write: Callable[[BinaryIO], object]) -> int:
        """Writes the file for ``key`` with ``write``, not visible yet; returns its size in bytes."""

    def publish(self) -> None:
        """Publishes every staged file, atomically and durably."""

    def discard(self) -> None:
        """Removes staged files that were not published."""


@runtime_checkable
class Lock(Protocol):
    """The writer's lock, exclusive or ``shared``, held until it is released or the process ends."""

    shared: bool
    host: str  #: prefix of the ``owner`` of every lock taken on this machine
    owner: str  #: unique name of the holder

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""

    @property
    def presence_key(self) -> str:
        """Key of a file that exists in the cache while the lock is held."""

    def claim(self, shard: int) -> bool:
        """Locks a shard among the writers that share the cache; returns False if another writer has it."""

    def has_claimed(self, shard: int) -> bool:
        """Returns whether this holder may write ``shard``: its lock is exclusive, or it has claimed the shard."""

    def unclaim(self, shard: int) -> None:
        """Releases the claim on a shard, if there is one."""

    def release(self) -> None:
        """Releases the lock. It may be called more than once."""


@runtime_checkable
class Files(Protocol):
    """Files that are read whole, such as the metadata of a cache."""

    def describe(self, key: str = "") -> str:
        """Returns the full name of a file, or of the cache itself, for messages."""

    def exists(self, key: str) -> bool:
        """Returns whether the file exists."""

    def read(self, key: str) -> bytes:
        """Returns the content of a file.

        Raises:
            CacheError: it is missing, not a regular file, or cannot be read.
        """


@runtime_checkable
class Store(Files, Protocol):
    """The files of one cache. Threads may share a store, and it can be pickled."""

    parallel: ClassVar[int]  #: number of concurrent requests

    @property
    def location(self) -> Path | str:
        """The argument with which ``open_store`` opens this store again."""

    @property
    def open_files(self) -> int:
        """Number of files that the readers of this process may keep open together."""

    def version(self, key: str) -> Version | None:
        """Returns the version of a file, as in ``listing``; None if it does not exist."""

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Returns the sizes of those of ``keys`` that exist."""

    def listing(self, folder: str) -> dict[str, Version]:
        """Returns the names directly in ``folder``, including folders; empty if it does not exist.

        Raises:
            CacheError: it cannot be listed.
        """

    def files(self) -> Iterator[tuple[str, int]]:
        """Yields key and size of every file, unordered; links are listed, not followed.

        Raises:
            CacheError: a folder cannot be listed.
        """

    def open(self, key: str) -> StoredFile:
        """Opens a file for random access.

        Raises:
            CacheError: it is missing, not a regular file, or cannot be opened.
        """

    def prepare(self, names: Iterable[str]) -> None:
        """Creates the location of a cache with these top-level ``names``.

        Raises:
            CacheError: one of them is a link out of the cache.
            OSError: the location cannot be created.
        """

    def stage(self, owner: str) -> Stage:
        """Starts a set of files that are published together; ``owner`` is that of the writer's lock."""

    def delete(self, key: str) -> None:
        """Deletes a file, durably; does nothing if it does not exist."""

    def remove(self, folder: str) -> None:
        """Deletes a folder with its contents; does nothing if it does not exist."""

    def lock(self, *, shared: bool) -> Lock:
        """Takes the writer's lock, exclusive or ``shared``.

        Raises:
            CacheError: it is taken and cannot be shared.
        """

    def opening(self) -> AbstractContextManager[None]:
        """Serialises creating and resuming the cache among shared writers."""

    def remove_partial(self, *, host: str) -> int:
        """Removes partial files of dead writers whose owner starts with ``host``; returns their number."""

    def translate_errors(self, doing: str) -> AbstractContextManager[None]:
        """Turns storage errors while ``doing`` into errors with a remedy.

        Raises:
            DiskSpaceError: the storage is full.
            CacheError: the storage is not writable, or failed.
        """

    def free_bytes(self) -> int | None:
        """Returns the free bytes; None if no limit is known."""

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Applies ``work`` to every item, ``parallel`` at a time; results keep the order of the items."""

"""What a cache asks of the place it is kept in.

Keys are paths inside the cache, with ``/`` between their parts: ``done/3.json``, ``features/up1/c/0/0/0/0``. A file is
written whole or not at all, and never changed: a new one may take its place.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

__all__ = ["Lock", "Stage", "Store", "StoredFile", "Version"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Version = tuple[int | str, ...]  #: tells a file from another one that took its place under the same name


@runtime_checkable
class StoredFile(Protocol):
    """A file open for reading; threads may share it. Where another took its place, it is read on or refused."""

    size: int  #: bytes
    version: Version

    def read_into(self, out: UInt8[np.ndarray, "bytes"], offset: int) -> None:
        """Fill ``out`` (contiguous) with the bytes from ``offset`` on.

        Raises:
            CacheError: the file ends early, or what it lies on failed.
        """

    def begin(self, out: UInt8[np.ndarray, "bytes"], offset: int, *, whole: bool) -> bool:
        """Fill ``out`` at once if its bytes are in memory; else ask for them, so that ``read_into`` waits less.

        With ``whole`` it may ask for the whole file, whose other bytes are wanted soon. Returns whether ``out`` is
        filled.
        """


@runtime_checkable
class Stage(Protocol):
    """A set of files that are all written before the first one takes its place."""

    def write(self, key: str, write: Callable[[BinaryIO], object]) -> int:
        """Let ``write`` fill the file that will be ``key``; return its size in bytes. Nothing of it can be seen yet."""

    def publish(self) -> None:
        """Put every staged file in its place, each whole, to outlive a power cut from now on."""

    def discard(self) -> None:
        """Remove what was staged and not published."""


@runtime_checkable
class Lock(Protocol):
    """The right to write, alone or ``shared`` with others, held until it is let go or the process ends."""

    shared: bool
    host: str  #: what the ``owner`` of every lock taken on this machine begins with
    owner: str  #: a name that no other holder has

    @property
    def held(self) -> bool:
        """Whether this process holds it."""

    @property
    def witness(self) -> str:
        """Key of a file that is in the cache while this is held."""

    def claim(self, shard: int) -> bool:
        """Claim a shard among those who share the cache; False when another one has it now."""

    def has_claimed(self, shard: int) -> bool:
        """Whether this holder may write ``shard``: it is alone, or has claimed it."""

    def unclaim(self, shard: int) -> None:
        """Give a claim up; harmless where there is none."""

    def release(self) -> None:
        """Let the next writer in; harmless when called again."""


@runtime_checkable
class Store(Protocol):
    """The files of one cache. Threads may share a store, and it can be pickled."""

    parallel: ClassVar[int]  #: requests that are worth having under way at once

    @property
    def location(self) -> Path | str:
        """What ``open_store`` makes this store of again."""

    @property
    def open_files(self) -> int:
        """Files that a reader may keep open."""

    def describe(self, key: str = "") -> str:
        """The full name of a file, or of the cache itself, for messages."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""

    def size(self, key: str) -> int:
        """Bytes of a file.

        Raises:
            CacheError: it is missing or cannot be looked at.
        """

    def version(self, key: str) -> Version | None:
        """The version of a file, as ``listing`` gives it; None where there is none."""

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of each of ``keys`` that exists."""

    def listing(self, folder: str) -> dict[str, Version]:
        """The names directly in ``folder``, folders among them; empty where there is no such folder.

        Raises:
            CacheError: it cannot be listed.
        """

    def files(self) -> Iterator[tuple[str, int]]:
        """Key and bytes of everything that is kept, in no order; links are named and never followed.

        Raises:
            CacheError: a folder cannot be listed.
        """

    def read(self, key: str) -> bytes:
        """The whole content of a file.

        Raises:
            CacheError: it is missing, no plain file, or cannot be read.
        """

    def open(self, key: str) -> StoredFile:
        """Open a file for reading at any offset.

        Raises:
            CacheError: it is missing, no plain file, or cannot be opened.
        """

    def prepare(self, names: Iterable[str]) -> None:
        """Make the place ready for a cache that has these ``names`` at its top.

        Raises:
            CacheError: one of them leads out of the cache.
            OSError: the place cannot be made.
        """

    def stage(self, owner: str) -> Stage:
        """Begin a set of files that are published together; ``owner`` is the name of the writer's lock."""

    def delete(self, key: str) -> None:
        """Remove a file, to outlive a power cut from now on; harmless where it is gone."""

    def remove(self, folder: str) -> None:
        """Remove a folder and all that is in it; harmless where it is gone."""

    def lock(self, *, shared: bool) -> Lock:
        """Take the right to write, alone or together with others who share it.

        Raises:
            CacheError: others hold it, and not in a way that can be shared.
        """

    def opening(self) -> AbstractContextManager[None]:
        """Among those who hold the lock, one at a time may make or resume the cache."""

    def sweep(self, *, host: str) -> int:
        """Remove what dead writers whose name begins with ``host`` left half written; return how many files."""

    def faults(self, doing: str) -> AbstractContextManager[None]:
        """Turn faults of the place while ``doing`` into errors with a remedy.

        Raises:
            DiskSpaceError: it is full.
            CacheError: it may not be written, or it failed.
        """

    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where nothing is known of a limit."""

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Do ``work`` on every item, ``parallel`` at once; results come in the order of the items."""

    def zarr(self) -> Any:
        """The cache as a store that zarr opens for reading."""

"""A cache in an object store, ``s3://bucket/prefix``, through ``obstore``.

Every object appears whole, so a shard's objects go up first and its commit record last: a reader sees all of a shard or
none of it. There are no locks here. Two writers on one shard may do the same work twice; where they stored other bytes,
the checksums of the record that came last refuse the rows, and the shard is written again: never wrong data.

Credentials and endpoint come from the standard variables ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_ENDPOINT_URL``, ``AWS_REGION`` and ``AWS_ALLOW_HTTP``.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from io import BytesIO
from posixpath import commonpath
from typing import Any, BinaryIO, ClassVar, TypeVar

import numpy as np
from jaxtyping import UInt8

from ...errors import CacheError, StoreError
from ..layout import MANIFEST
from .base import Version
from .s3 import open_bucket, split_url, store_errors

__all__ = ["ObjectFile", "ObjectLock", "ObjectStage", "ObjectStore"]

_PARALLEL = 16  #: requests under way at once: each waits for the network, not for a core
_FEW = 4  #: up to so many objects are asked for one by one; a listing gives a thousand

Item = TypeVar("Item")
Result = TypeVar("Result")


class ObjectFile:
    """An object as of the time it was opened; reads raise if it was replaced.

    Raises:
        CacheError: it is missing.
    """

    def __init__(self, store: "ObjectStore", key: str) -> None:
        self._store = store
        self._key = key
        meta = store.head(key)
        if meta is None:
            raise CacheError(f"{store.describe(key)} is missing")
        self.size = int(meta["size"])
        self.version = _version(meta)

    def read_into(self, out: UInt8[np.ndarray, "bytes"], offset: int) -> None:
        """Fills ``out`` with a ranged request from ``offset`` on."""
        missing = offset + out.nbytes - self.size
        if missing > 0:
            raise CacheError(f"the file ends at byte {self.size}, {missing} bytes early")
        if out.nbytes:
            out[:] = np.frombuffer(self._store.get(self._key, self.version, offset, out.nbytes), np.uint8)

    def read_if_cached(self, out: UInt8[np.ndarray, "bytes"], offset: int, *, whole: bool) -> bool:
        """Returns False: nothing is in memory, and a reader sends concurrent requests instead."""
        return False


class ObjectStage:
    """Objects staged in memory until they are uploaded."""

    def __init__(self, store: "ObjectStore") -> None:
        self._store = store
        self._staged: list[tuple[str, BytesIO]] = []

    def write(self, key: str, write: Callable[[BinaryIO], object]) -> int:
        """Stages the object ``key`` with the bytes that ``write`` writes."""
        content = BytesIO()
        write(content)
        self._staged.append((key, content))
        return content.tell()

    def publish(self) -> None:
        """Uploads the staged objects, each atomically."""
        for key, content in self._staged:
            content.seek(0)
            self._store.put(key, content)
        self._staged.clear()

    def discard(self) -> None:
        """Drops staged objects that were not uploaded."""
        self._staged.clear()


class ObjectLock:
    """A placeholder, since object stores have no locks: every writer may write."""

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.host = ""
        self.owner = secrets.token_hex(8)
        self._process = os.getpid()

    @property
    def held(self) -> bool:
        """Whether this process opened the lock and has not released it."""
        return self._process == os.getpid()

    @property
    def presence_key(self) -> str:
        """Key of the manifest, since the lock has no file of its own."""
        return MANIFEST

    def claim(self, shard: int) -> bool:
        """Returns True: claims of other writers cannot be detected."""
        return True

    def has_claimed(self, shard: int) -> bool:
        """Returns whether the lock is held."""
        return self.held

    def unclaim(self, shard: int) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Releases the lock."""
        self._process = -1


class ObjectStore:
    """The objects under ``url``. It is reopened when unpickled, and cannot be used after a fork.

    Raises:
        CacheError: the URL names no bucket, or ``obstore`` is not installed.
    """

    parallel: ClassVar[int] = _PARALLEL

    def __init__(self, *, url: str) -> None:
        self.location = url.rstrip("/")
        self._bucket, self._prefix = split_url(self.location)
        self._process = os.getpid()
        self._objects = open_bucket(self._bucket, self._prefix)

    def __reduce__(self) -> tuple[Callable[[], "ObjectStore"], tuple[()]]:
        return partial(ObjectStore, url=self.location), ()

    @property
    def open_files(self) -> int:
        """Practically unlimited: an open object holds no connection."""
        return 10_000_000

    def describe(self, key: str = "") -> str:
        """Returns the URL of an object."""
        return f"{self.location}/{key}" if key else self.location

    def exists(self, key: str) -> bool:
        """Returns whether the object exists; raises if the bucket does not."""
        if self.head(key) is not None:
            return True
        self.listing("")
        return False

    def version(self, key: str) -> Version | None:
        """Returns ETag and size of an object; None if it does not exist."""
        meta = self.head(key)
        return None if meta is None else _version(meta)

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Returns the size of each object that exists, from one listing of their common prefix."""
        wanted = set(keys)
        if len(wanted) <= _FEW:
            return {key: int(meta["size"]) for key in wanted if (meta := self.head(key)) is not None}
        folder = commonpath(wanted)
        with self._asking():
            found = [meta for chunk in self._obstore.list(self._objects, folder or None) for meta in chunk]
        return {meta["path"]: int(meta["size"]) for meta in found if meta["path"] in wanted}

    def listing(self, folder: str) -> dict[str, Version]:
        """Returns the names directly under a prefix with their versions; folders have none."""
        with self._asking():
            found = self._obstore.list_with_delimiter(self._objects, folder or None)
        names: dict[str, Version] = {path.rpartition("/")[2]: () for path in found["common_prefixes"]}
        names.update({meta["path"].rpartition("/")[2]: _version(meta) for meta in found["objects"]})
        return names

    def files(self) -> Iterator[tuple[str, int]]:
        """Yields every object with its size."""
        with self._asking():
            for chunk in self._obstore.list(self._objects):
                yield from ((meta["path"], int(meta["size"])) for meta in chunk)

    def read(self, key: str) -> bytes:
        """Returns the content of an object."""
        try:
            with self._asking():
                return bytes(self._obstore.get(self._objects, key).bytes())
        except FileNotFoundError as error:
            raise CacheError(f"{self.describe(key)} is missing") from error

    def open(self, key: str) -> ObjectFile:
        """Opens an object: reads its size and version."""
        return ObjectFile(self, key)

    def prepare(self, names: Iterable[str]) -> None:
        """Checks that the bucket exists; a prefix need not be created."""
        self.listing("")

    def stage(self, owner: str) -> ObjectStage:
        """Starts a set of objects."""
        return ObjectStage(self)

    def delete(self, key: str) -> None:
        """Deletes an object."""
        with self._asking():
            self._obstore.delete(self._objects, key)

    def remove(self, folder: str) -> None:
        """Deletes every object below a prefix."""
        with self._asking():
            found = [meta["path"] for chunk in self._obstore.list(self._objects, folder) for meta in chunk]
            self._obstore.delete(self._objects, found)

    def lock(self, *, shared: bool) -> ObjectLock:
        """Returns a placeholder; other writers cannot be excluded."""
        return ObjectLock(shared=shared)

    def opening(self) -> AbstractContextManager[None]:
        """Does nothing: there is no lock."""
        return nullcontext()

    def remove_partial(self, *, host: str) -> int:
        """Does nothing: partial uploads are invisible, and the bucket's lifecycle rule removes them."""
        return 0

    @contextmanager
    def translate_errors(self, doing: str) -> Iterator[None]:
        """Adds the operation, and that committed work is safe, to errors of the store."""
        try:
            yield
        except StoreError as error:
            raise StoreError(
                f"{error} (while {doing}). What was committed before is safe; run the same command again to go on"
            ) from error

    def free_bytes(self) -> None:
        """Returns None: no limit is known."""
        return

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Applies ``work`` to every item concurrently; results keep their order."""
        self._refuse_fork()
        return self._pool.map(work, items)

    def head(self, key: str) -> Any:
        """Returns the metadata of an object; None if it does not exist."""
        try:
            with self._asking():
                return self._obstore.head(self._objects, key)
        except FileNotFoundError:
            return None

    def get(self, key: str, version: Version, offset: int, length: int) -> Any:
        """Returns bytes of an object, if it still has ``version``.

        Raises:
            CacheError: it is gone, was replaced, or gave another number of bytes.
        """
        from obstore.exceptions import PreconditionError

        options = {"range": (offset, offset + length), "if_match": version[0]}
        try:
            with self._asking():
                data = self._obstore.get(self._objects, key, options=options).bytes()
        except FileNotFoundError as error:
            raise CacheError(f"{self.describe(key)} is missing") from error
        except PreconditionError as error:
            raise CacheError("another file took its place while it was read") from error
        if len(data) != length:
            raise CacheError(f"the store gave {len(data)} bytes of {length}")
        return data

    def put(self, key: str, content: BytesIO) -> None:
        """Uploads an object."""
        with self._asking():
            self._obstore.put(self._objects, key, content)

    @property
    def _obstore(self) -> Any:
        import obstore

        self._refuse_fork()
        return obstore

    def _refuse_fork(self) -> None:
        if self._process != os.getpid():
            raise StoreError(
                f"{self.location} was opened before this process was forked, and its connections do not survive that; "
                "start workers with 'spawn' or 'forkserver' (torch: multiprocessing_context='spawn'), or use threads"
            )

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_PARALLEL, thread_name_prefix="objects")

    def _asking(self) -> AbstractContextManager[None]:
        return store_errors(self.location, self._bucket)


def _version(meta: Any) -> Version:
    return meta["e_tag"], int(meta["size"])

"""A cache in an object store, ``s3://bucket/prefix``, through ``obstore`` and zarr's own ``ObjectStore`` around it.

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
from functools import cached_property
from io import BytesIO
from posixpath import commonpath
from typing import Any, BinaryIO, ClassVar, TypeVar

import numpy as np
from jaxtyping import UInt8

from ...errors import CacheError, StoreError
from ..metadata import MANIFEST
from .base import Version
from .s3 import open_bucket, split_url, store_errors

__all__ = ["ObjectStore"]

_PARALLEL = 16  #: requests under way at once: each waits for the network, not for a core
_FEW = 4  #: up to so many objects are asked for one by one; a listing gives a thousand

Item = TypeVar("Item")
Result = TypeVar("Result")


class ObjectFile:
    """An object as it was when it was opened; reads of another one that took its place are refused.

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
        """Fill ``out`` with a ranged request from ``offset`` on."""
        missing = offset + out.nbytes - self.size
        if missing > 0:
            raise CacheError(f"the file ends at byte {self.size}, {missing} bytes early")
        if out.nbytes:
            out[:] = np.frombuffer(self._store.get(self._key, self.version, offset, out.nbytes), np.uint8)

    def begin(self, out: UInt8[np.ndarray, "bytes"], offset: int, *, whole: bool) -> bool:
        """Nothing is in memory; a reader has many requests under way instead."""
        return False


class ObjectStage:
    """Objects that wait in memory until they are sent."""

    def __init__(self, store: "ObjectStore") -> None:
        self._store = store
        self._staged: list[tuple[str, BytesIO]] = []

    def write(self, key: str, write: Callable[[BinaryIO], object]) -> int:
        """Let ``write`` fill the object that will be ``key``."""
        content = BytesIO()
        write(content)
        self._staged.append((key, content))
        return content.tell()

    def publish(self) -> None:
        """Send the staged objects; each appears when all of it has arrived."""
        for key, content in self._staged:
            content.seek(0)
            self._store.put(key, content)
        self._staged.clear()

    def discard(self) -> None:
        """Forget what was staged and not sent."""
        self._staged.clear()


class ObjectLock:
    """Stands in for the lock that an object store does not have: everybody may write."""

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.host = ""
        self.owner = secrets.token_hex(8)
        self._process = os.getpid()

    @property
    def held(self) -> bool:
        """Whether this process opened the writer and has not closed it."""
        return self._process == os.getpid()

    @property
    def presence_key(self) -> str:
        """Nothing is kept of the lock itself: the manifest shows that the cache is the same one."""
        return MANIFEST

    def claim(self, shard: int) -> bool:
        """Every claim is granted: nobody else's can be seen."""
        return True

    def has_claimed(self, shard: int) -> bool:
        """Whether the writer is open."""
        return self.held

    def unclaim(self, shard: int) -> None:
        """Nothing to give up."""

    def release(self) -> None:
        """End the writer's right to write."""
        self._process = -1


class ObjectStore:
    """The objects under ``url``. It is opened anew where it is unpickled, and refuses to be used across a fork.

    Raises:
        CacheError: the URL names no bucket, or ``obstore`` is not installed.
    """

    parallel: ClassVar[int] = _PARALLEL

    def __init__(self, *, url: str) -> None:
        self.location = url.rstrip("/")
        self._bucket, self._prefix = split_url(self.location)
        self._process = os.getpid()
        self._objects = open_bucket(self._bucket, self._prefix)

    def __reduce__(self) -> tuple[Callable[[str], "ObjectStore"], tuple[str]]:
        return _reopened, (self.location,)

    @property
    def open_files(self) -> int:
        """Any number: an object that is open holds no connection."""
        return 10_000_000

    def describe(self, key: str = "") -> str:
        """The URL of an object."""
        return f"{self.location}/{key}" if key else self.location

    def exists(self, key: str) -> bool:
        """Whether there is such an object; where there is none, the bucket must at least be there."""
        if self.head(key) is not None:
            return True
        self.listing("")
        return False

    def size(self, key: str) -> int:
        """Bytes of an object."""
        meta = self.head(key)
        if meta is None:
            raise CacheError("the file cannot be opened (No such object)")
        return int(meta["size"])

    def version(self, key: str) -> Version | None:
        """The tag of an object's content, and its size."""
        meta = self.head(key)
        return None if meta is None else _version(meta)

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of each object that exists, from one listing of their common folder."""
        wanted = set(keys)
        if len(wanted) <= _FEW:
            return {key: int(meta["size"]) for key in wanted if (meta := self.head(key)) is not None}
        folder = commonpath(wanted)
        with self._asking():
            found = [meta for chunk in self._obstore.list(self._objects, folder or None) for meta in chunk]
        return {meta["path"]: int(meta["size"]) for meta in found if meta["path"] in wanted}

    def listing(self, folder: str) -> dict[str, Version]:
        """Names directly under a prefix, each with its version; folders have none."""
        with self._asking():
            found = self._obstore.list_with_delimiter(self._objects, folder or None)
        names: dict[str, Version] = {path.rpartition("/")[2]: () for path in found["common_prefixes"]}
        names.update({meta["path"].rpartition("/")[2]: _version(meta) for meta in found["objects"]})
        return names

    def files(self) -> Iterator[tuple[str, int]]:
        """Every object with its bytes."""
        with self._asking():
            for chunk in self._obstore.list(self._objects):
                yield from ((meta["path"], int(meta["size"])) for meta in chunk)

    def read(self, key: str) -> bytes:
        """The whole content of an object."""
        try:
            with self._asking():
                return bytes(self._obstore.get(self._objects, key).bytes())
        except FileNotFoundError as error:
            raise CacheError(f"{self.describe(key)} is missing") from error

    def open(self, key: str) -> ObjectFile:
        """Note an object's size and version."""
        return ObjectFile(self, key)

    def prepare(self, names: Iterable[str]) -> None:
        """Make sure that the bucket is there; a prefix needs no making."""
        self.listing("")

    def stage(self, owner: str) -> ObjectStage:
        """Begin a set of objects."""
        return ObjectStage(self)

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._asking():
            self._obstore.delete(self._objects, key)

    def remove(self, folder: str) -> None:
        """Remove every object below a prefix."""
        with self._asking():
            found = [meta["path"] for chunk in self._obstore.list(self._objects, folder) for meta in chunk]
            self._obstore.delete(self._objects, found)

    def lock(self, *, shared: bool) -> ObjectLock:
        """Let the caller write; nobody can be kept out."""
        return ObjectLock(shared=shared)

    def opening(self) -> AbstractContextManager[None]:
        """Nobody can be waited for."""
        return nullcontext()

    def sweep(self, *, host: str) -> int:
        """Nothing half written can be seen; see the bucket's rule for aborted multipart uploads."""
        return 0

    @contextmanager
    def faults(self, doing: str) -> Iterator[None]:
        """Say what the store was asked for, and that the work so far is safe."""
        try:
            yield
        except StoreError as error:
            raise StoreError(
                f"{error} (while {doing}). What was committed before is safe; run the same command again to go on"
            ) from error

    def free_bytes(self) -> None:
        """No limit is known."""
        return

    def zarr(self) -> Any:
        """Zarr's own store around the same objects."""
        from zarr.storage import ObjectStore as ZarrObjectStore

        return ZarrObjectStore(self._objects, read_only=True)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Do ``work`` on every item, many at once; results come in order."""
        self._refuse_fork()
        return self._pool.map(work, items)

    def head(self, key: str) -> Any:
        """What the store knows of an object; None where there is none."""
        try:
            with self._asking():
                return self._obstore.head(self._objects, key)
        except FileNotFoundError:
            return None

    def get(self, key: str, version: Version, offset: int, length: int) -> Any:
        """Bytes of an object, if it is still the one of ``version``.

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
        """Store an object."""
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


def _reopened(url: str) -> ObjectStore:
    return ObjectStore(url=url)


def _version(meta: Any) -> Version:
    return meta["e_tag"], int(meta["size"])

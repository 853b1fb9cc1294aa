"""Storage backends of a cache: a local folder or an object store, with the same methods.

The classes of the local folder describe them. Only ``open_store`` depends on the kind of a location.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import CacheError
from ...locks import WriterLock
from .local import LocalStore
from .local_files import LocalFile, LocalStage
from .object_store import ObjectFile, ObjectLock, ObjectStage, ObjectStore

__all__ = ["Location", "Lock", "Stage", "Store", "StoredFile", "exclusive", "join_location", "open_store"]

Store = LocalStore | ObjectStore
StoredFile = LocalFile | ObjectFile
Stage = LocalStage | ObjectStage
Lock = WriterLock | ObjectLock
Location = Path | str  #: of a cache: a folder, or ``s3://bucket/prefix``


@contextmanager
def exclusive(store: Store, doing: str) -> Iterator[Lock]:
    """Holds the writer's exclusive lock; errors of the storage say what was being done (``doing``).

    Raises:
        CacheError: a writer uses the cache, or the storage is not writable.
        DiskSpaceError: the storage is full.
    """
    with store.translate_errors(doing):
        lock = store.lock(shared=False)
        try:
            yield lock
        finally:
            lock.release()


def join_location(location: Location, name: str) -> Location:
    """Returns the location of ``name`` below another."""
    return location / name if isinstance(location, Path) else f"{location.rstrip('/')}/{name}"


def open_store(location: Location) -> Store:
    """Returns the store of the cache at ``location``, a folder or ``s3://bucket/prefix``; reads and creates nothing.

    Raises:
        CacheError: the URL scheme is not supported, or its dependency is not installed.
    """
    text = os.fspath(location)
    if text.startswith("s3://"):
        return ObjectStore(url=text)
    if "://" in text or text.startswith("s3:"):
        raise CacheError(f"A cache cannot be kept at {text}; give a folder, or s3://bucket/prefix as a string")
    return LocalStore(root=Path(text))

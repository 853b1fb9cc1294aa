"""Where the bytes of a cache live: one small interface, and what stands behind it.

``open_store`` is the only place that looks at what a location names; the rest of the cache speaks to ``base.Store``.
"""

import os
from pathlib import Path

from ...errors import CacheError
from .base import Store
from .local import LocalStore

__all__ = ["Store", "open_store"]


def open_store(location: Path | str) -> Store:
    """The store of the cache at ``location``, a folder or ``s3://bucket/prefix``. Nothing is read or made yet.

    Raises:
        CacheError: the location is a URL of another kind, or what its kind needs is not installed.
    """
    text = os.fspath(location)
    if text.startswith("s3://"):
        from .object_store import ObjectStore

        return ObjectStore(url=text)
    if "://" in text or text.startswith("s3:"):
        raise CacheError(f"A cache cannot be kept at {text}; give a folder, or s3://bucket/prefix as a string")
    return LocalStore(root=Path(text))

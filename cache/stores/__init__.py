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
    """The store of the cache at ``location``, a folder. Nothing is read or made yet.

    Raises:
        CacheError: the location is a URL of a kind that caches cannot be kept at.
    """
    text = os.fspath(location)
    if "://" in text:
        raise CacheError(f"A cache cannot be kept at {text}; give a folder")
    return LocalStore(root=Path(text))

"""What the storage backends share.

Keys are paths inside the cache, separated by ``/``: ``done/3.json``, ``features/up1/c/0/0/0/0``. Files are written
atomically and never modified, only replaced.
"""

from typing import Protocol, runtime_checkable

__all__ = ["Files", "Version"]

Version = tuple[int | str, ...]  #: distinguishes a file from one that replaced it under the same name


@runtime_checkable
class Files(Protocol):
    """Files that are read whole, such as the metadata of a cache: a store, or what was pushed to a remote."""

    def describe(self, key: str = "") -> str:
        """Returns the full name of a file, or of the cache itself, for messages."""

    def exists(self, key: str) -> bool:
        """Returns whether the file exists."""

    def read(self, key: str) -> bytes:
        """Returns the content of a file.

        Raises:
            CacheError: it is missing, not a regular file, or cannot be read.
        """

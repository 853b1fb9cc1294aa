"""Opening the files of a cache: regular files only, so that a pipe or a device in their place cannot hang a reader."""

import os
import stat
from pathlib import Path

from ...errors import CacheError

__all__ = ["open_regular", "read_regular"]


def open_regular(path: Path | str) -> tuple[int, os.stat_result]:
    """Open ``path`` for reading and return its file descriptor and its status.

    Raises:
        CacheError: the file is missing, is no regular file, or may not be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing") from error
    except OSError as error:
        raise CacheError(f"{path} cannot be opened ({error.strerror})") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CacheError(f"{path} is not a regular file")
    return descriptor, status


def read_regular(path: Path) -> bytes:
    """Return the whole content of a file.

    Raises:
        CacheError: as ``open_regular``, or the device failed.
    """
    descriptor, _ = open_regular(path)
    try:
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            return file.read()
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({error.strerror})") from error

"""Files of a cache in a folder: read at their offsets; staged beside the arrays, flushed, then renamed into place.

Only regular files are opened, so that a pipe or a device in their place cannot block a reader.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from ...errors import CacheError
from ...files import fsync_folder
from ..layout import STAGING
from .base import Version

__all__ = [
    "LocalFile",
    "LocalStage",
    "file_version",
    "open_regular",
    "refuse_links_out",
]

_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  #: Linux alone has it


class LocalFile:
    """A file open for reading, with ``size`` (bytes) and ``version``. Threads and forked processes may share it.

    If it is replaced or deleted, reads use the old file (those of an object raise).

    Raises:
        CacheError: the file is missing or no regular file.
    """

    def __init__(self, path: Path | str) -> None:
        self._descriptor = -1
        self._descriptor, status = open_regular(path)
        self.size = status.st_size
        self.version = file_version(status)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, out: UInt8[np.ndarray, "bytes"], offset: int) -> None:
        """Fills ``out`` (contiguous) with the bytes from ``offset`` on.

        Raises:
            CacheError: the file ends early, or the device failed.
        """
        done = 0
        while done < out.nbytes:
            try:
                count = os.preadv(self._descriptor, [(out[done:] if done else out).data], offset + done)
            except OSError as error:
                raise CacheError(f"the disk failed ({error.strerror})") from error
            if count == 0:
                raise CacheError(f"the file ends at byte {offset + done}, {out.nbytes - done} bytes early")
            done += count

    def read_if_cached(self, out: UInt8[np.ndarray, "bytes"], offset: int, *, whole: bool) -> bool:
        """Fills ``out`` if its bytes are in memory; otherwise starts reading ahead and returns False.

        ``whole`` allows reading ahead the whole file, whose other bytes are needed soon.
        """
        if _NOWAIT is None:
            return False
        try:
            count = os.preadv(self._descriptor, (out.data,), offset, _NOWAIT)
        except OSError:  # not in memory, or a file system without the flag; disk errors occur again in read_into
            count = 0
        if count == out.nbytes:
            return True
        wanted = (0, self.size) if whole else (offset, out.nbytes)
        os.posix_fadvise(self._descriptor, *wanted, os.POSIX_FADV_WILLNEED)
        return False


def open_regular(path: Path | str) -> tuple[int, os.stat_result]:
    """Opens ``path`` for reading; returns its file descriptor and its status.

    Raises:
        CacheError: the file is missing, is not a regular file, or may not be read.
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


def file_version(status: os.stat_result) -> Version:
    """Returns inode, size and modification time of a file, which tell a replaced file from the old one."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class LocalStage:
    """A set of files that are all written and flushed before the first one is renamed into place.

    Until ``publish`` nothing in the cache changes; ``discard`` removes the staged files. Their names contain ``owner``,
    that of the writer's lock, so writers never collide and files of dead writers can be identified.
    """

    def __init__(self, *, root: Path, owner: str) -> None:
        self.root = root
        self.owner = owner
        (root / STAGING).mkdir(exist_ok=True)
        self._staged: list[tuple[Path, str]] = []

    def write(self, target: str, write: Callable[[BinaryIO], object]) -> int:
        """Writes the staged file for ``target`` (a path inside the cache) with ``write``; returns its size in bytes."""
        partial = self.root / STAGING / f"{target.replace('/', ',')}.{self.owner}.partial"
        self._staged.append((partial, target))
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def publish(self) -> None:
        """Renames every staged file into place and flushes its parent folders, up to the cache."""
        folders: set[Path] = set()
        for partial, target in self._staged:
            place = self.root / target
            place.parent.mkdir(parents=True, exist_ok=True)
            refuse_links_out(self.root, place.parent)
            partial.replace(place)
            inner = place.relative_to(self.root).parents
            folders.update(self.root / folder for folder in inner)
        self._staged.clear()
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            fsync_folder(folder)

    def discard(self) -> None:
        """Removes staged files that were not published."""
        for partial, _ in self._staged:
            partial.unlink(missing_ok=True)
        self._staged.clear()


def refuse_links_out(root: Path, folder: Path) -> None:
    """Raises if a folder of the cache is a link or below a link, which may lead out of the cache.

    Raises:
        CacheError: it is.
    """
    if folder.resolve() != root.resolve() / folder.relative_to(root):
        raise CacheError(f"{folder} lies behind a link, which may lead out of the cache; put real folders there")

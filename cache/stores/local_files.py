"""Files of a cache in a folder: read at their offsets; staged beside the arrays, flushed, then renamed into place.

Only regular files are opened, so that a pipe or a device in their place cannot block a reader.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from ...errors import CacheError, DiskSpaceError, Xd3dError
from ...files import fsync_folder
from ...locks import live_owners
from ..layout import DONE, STAGING
from .base import Version

__all__ = [
    "LocalFile",
    "LocalStage",
    "disk_errors",
    "file_version",
    "read_regular",
    "refuse_links_out",
    "sweep_partials",
]

_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  #: Linux alone has it


class LocalFile:
    """An open file, which may be replaced or deleted meanwhile. Threads and forked processes may share it.

    Raises:
        CacheError: the file is missing or no regular file.
    """

    def __init__(self, path: Path | str) -> None:
        self._descriptor = -1
        self._descriptor, status = _open_regular(path)
        self.size = status.st_size
        self.version = file_version(status)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, out: UInt8[np.ndarray, "bytes"], offset: int) -> None:
        """Fills ``out`` with the bytes from ``offset`` on."""
        done = 0
        while done < out.nbytes:
            try:
                count = os.preadv(self._descriptor, [(out[done:] if done else out).data], offset + done)
            except OSError as error:
                raise CacheError(f"the disk failed ({error.strerror})") from error
            if count == 0:
                raise CacheError(f"the file ends at byte {offset + done}, {out.nbytes - done} bytes early")
            done += count

    def begin(self, out: UInt8[np.ndarray, "bytes"], offset: int, *, whole: bool) -> bool:
        """Fills ``out`` from the page cache, or starts reading ahead."""
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


def _open_regular(path: Path | str) -> tuple[int, os.stat_result]:
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


def read_regular(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        CacheError: as ``_open_regular``, or the device failed.
    """
    descriptor, _ = _open_regular(path)
    try:
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            return file.read()
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({error.strerror})") from error


def file_version(status: os.stat_result) -> Version:
    """Returns inode, size and modification time of a file, which tell a replaced file from the old one."""
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns disk errors under ``path`` into errors with a remedy.

    Raises:
        DiskSpaceError: the disk or the quota is full.
        CacheError: the cache may not be written, or the device failed.
    """
    try:
        yield
    except Xd3dError:
        raise
    except OSError as error:
        safe = "what was committed before is safe; run the same command again to go on"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                f"No room left for the cache {path} while {doing} ({_free(path)} bytes free); free some space: {safe}"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise CacheError(
                f"The cache {path} cannot be written while {doing} ({error.strerror}: {error.filename}); "
                "mount it writable, change its owner, or choose another folder"
            ) from error
        raise CacheError(f"The disk failed under the cache {path} while {doing} ({error}); {safe}") from error


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


def sweep_partials(path: Path, *, host: str = "") -> int:
    """Removes the ``*.partial`` files whose owner no longer holds the writer's lock; returns their number.

    ``host`` restricts it to owners on one host: on network file systems with local locks, a shared writer cannot tell
    whether owners on other hosts are alive.
    """
    files = [file for folder in (path, path / STAGING, path / DONE) for file in folder.glob("*.partial")]
    alive = live_owners(path)  # listed after the files: an owner takes its lock before it creates a file
    dead = [file for file in files if (owner := file.name.split(".")[-2]) not in alive and owner.startswith(host)]
    for file in dead:
        file.unlink(missing_ok=True)
    return len(dead)


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free if path.exists() else 0

"""How bytes reach the disk: staged beside the arrays, flushed, renamed into place, their folders flushed too."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import CacheError, DiskSpaceError
from ..files import fsync_folder
from .layout import DONE, STAGING

__all__ = ["Stage", "disk_errors", "sweep_partials"]


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn a fault of the disk under ``path`` into an error with a remedy.

    Raises:
        DiskSpaceError: the disk or the quota is full.
        CacheError: the cache may not be written, or the device failed.
    """
    try:
        yield
    except (CacheError, DiskSpaceError):
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


class Stage:
    """A set of files that are all written and flushed before the first one takes its place.

    Until ``publish`` nothing in the cache changes; ``discard`` removes what was staged.
    """

    def __init__(self, *, path: Path) -> None:
        self.path = path
        self._staged: list[tuple[Path, str]] = []

    def write(self, target: str, write: Callable[[BinaryIO], object]) -> int:
        """Let ``write`` fill the file that will be ``target`` (a path inside the cache); return its size in bytes."""
        partial = self.path / STAGING / f"{target.replace('/', ',')}.{os.getpid()}.partial"
        self._staged.append((partial, target))
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def publish(self) -> None:
        """Rename every staged file into place and flush the folders above it, up to the cache."""
        folders: set[Path] = set()
        for partial, target in self._staged:
            place = self.path / target
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(place)
            inner = place.relative_to(self.path).parents
            folders.update(self.path / folder for folder in inner)
        self._staged.clear()
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            fsync_folder(folder)

    def discard(self) -> None:
        """Remove the files that were staged and not published."""
        for partial, _ in self._staged:
            partial.unlink(missing_ok=True)
        self._staged.clear()


def sweep_partials(path: Path) -> int:
    """Remove the ``*.partial`` files of processes that no longer live; return how many.

    The caller holds the writer's lock, so a file with the caller's own process id is an earlier namesake's.
    """
    swept = 0
    for folder in (path, path / STAGING, path / DONE):
        if not folder.is_dir():
            continue
        for file in folder.glob("*.partial"):
            owner = file.name.split(".")[-2]
            if not owner.isdecimal() or int(owner) == os.getpid() or not _lives(int(owner)):
                file.unlink(missing_ok=True)
                swept += 1
    return swept


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free if path.exists() else 0

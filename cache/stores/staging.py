"""How bytes reach the disk: staged beside the arrays, flushed, renamed into place, their folders flushed too."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ...errors import CacheError, DiskSpaceError
from ...files import fsync_folder
from ...locks import live_owners
from ..layout import DONE, STAGING

__all__ = ["LocalStage", "disk_errors", "refuse_way_out", "sweep_partials"]


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


class LocalStage:
    """A set of files that are all written and flushed before the first one takes its place.

    Until ``publish`` nothing in the cache changes; ``discard`` removes what was staged. Staged files carry ``owner``,
    the name of the writer's lock, so that no two writers share one and litter can be told from work.
    """

    def __init__(self, *, root: Path, owner: str) -> None:
        self.root = root
        self.owner = owner
        (root / STAGING).mkdir(exist_ok=True)
        self._staged: list[tuple[Path, str]] = []

    def write(self, target: str, write: Callable[[BinaryIO], object]) -> int:
        """Let ``write`` fill the file that will be ``target`` (a path inside the cache); return its size in bytes."""
        partial = self.root / STAGING / f"{target.replace('/', ',')}.{self.owner}.partial"
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
            place = self.root / target
            place.parent.mkdir(parents=True, exist_ok=True)
            refuse_way_out(self.root, place.parent)
            partial.replace(place)
            inner = place.relative_to(self.root).parents
            folders.update(self.root / folder for folder in inner)
        self._staged.clear()
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            fsync_folder(folder)

    def discard(self) -> None:
        """Remove the files that were staged and not published."""
        for partial, _ in self._staged:
            partial.unlink(missing_ok=True)
        self._staged.clear()


def refuse_way_out(root: Path, folder: Path) -> None:
    """Refuse a folder of the cache that is a link, or lies behind one: it may lead out of the cache.

    Raises:
        CacheError: it does.
    """
    if folder.resolve() != root.resolve() / folder.relative_to(root):
        raise CacheError(f"{folder} lies behind a link, which may lead out of the cache; put real folders there")


def sweep_partials(path: Path, *, host: str = "") -> int:
    """Remove the ``*.partial`` files whose owner does not hold the writer's lock any more; return how many.

    ``host`` leaves those of owners on other hosts alone: whoever shares the cache cannot be sure of them where a
    network file system keeps locks to itself.
    """
    files = [file for folder in (path, path / STAGING, path / DONE) for file in folder.glob("*.partial")]
    alive = live_owners(path)  # after the files: an owner holds its lock before it makes its first one
    dead = [file for file in files if (owner := file.name.split(".")[-2]) not in alive and owner.startswith(host)]
    for file in dead:
        file.unlink(missing_ok=True)
    return len(dead)


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free if path.exists() else 0

"""A cache in a local folder; the docstrings say what every store does."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from ...errors import CacheError, DiskSpaceError, Xd3dError
from ...files import free_bytes, fsync_folder
from ...locks import LOCKS, FileLock, WriterLock, live_owners
from ..layout import DONE, STAGING
from .base import Version
from .local_files import (
    LocalFile,
    LocalStage,
    file_version,
    open_regular,
    refuse_links_out,
)

__all__ = ["LOCK", "LocalStore"]

LOCK = "writer.lock"

_OPEN_FILES = 4096  #: at most; and a quarter of the process's limit

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class LocalStore:
    """The files of one cache, under the folder ``root``. Threads may share a store, and it can be pickled."""

    root: Path
    parallel: ClassVar[int] = 1  #: number of concurrent requests

    @property
    def location(self) -> Path:
        """The folder, with which ``open_store`` opens this store again."""
        return self.root

    @property
    def open_files(self) -> int:
        """Files that the readers of this process may keep open together: a quarter of its limit, at most 4096."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return _OPEN_FILES if allowed == resource.RLIM_INFINITY else min(_OPEN_FILES, allowed // 4)

    def describe(self, key: str = "") -> str:
        """Returns the path of a file, or of the cache itself, for messages."""
        return str(self.root / key)

    def exists(self, key: str) -> bool:
        """Returns whether the file exists."""
        return (self.root / key).exists()

    def version(self, key: str) -> Version | None:
        """Returns the version of a file, as in ``listing``; None if it does not exist."""
        try:
            return file_version((self.root / key).lstat())
        except FileNotFoundError:
            return None

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Returns the sizes of those of ``keys`` that exist."""
        found = {}
        for key in keys:
            try:
                found[key] = os.stat(f"{self.root}/{key}").st_size  # noqa: PTH116 - a path object costs as much again
            except OSError:
                continue
        return found

    def listing(self, folder: str) -> dict[str, Version]:
        """Returns the names directly in ``folder``, including folders; empty if it does not exist.

        Raises:
            CacheError: it cannot be listed.
        """
        found: dict[str, Version] = {}
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # a writer may have just deleted it
                        found[entry.name] = file_version(entry.stat(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise CacheError(f"{self.root / folder} cannot be listed ({error.strerror})") from error
        return found

    def files(self) -> Iterator[tuple[str, int]]:
        """Yields key and size of every file, unordered; links are listed, not followed.

        Raises:
            CacheError: a folder cannot be listed.
        """
        folders = [""]
        while folders:
            prefix = folders.pop()
            try:
                with os.scandir(f"{self.root}/{prefix}") as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):  # a writer may have just deleted it
                            if entry.is_dir(follow_symlinks=False):
                                folders.append(f"{prefix}{entry.name}/")
                            else:
                                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CacheError(f"{self.root / prefix} cannot be listed ({error.strerror})") from error

    def read(self, key: str) -> bytes:
        """Returns the content of a file.

        Raises:
            CacheError: it is missing, not a regular file, or cannot be read.
        """
        path = self.root / key
        descriptor, _ = open_regular(path)
        try:
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
                return file.read()
        except OSError as error:
            raise CacheError(f"{path} cannot be read ({error.strerror})") from error

    def open(self, key: str) -> LocalFile:
        """Opens a file for random access.

        Raises:
            CacheError: it is missing, not a regular file, or cannot be opened.
        """
        return LocalFile(f"{self.root}/{key}")

    def prepare(self, names: Iterable[str]) -> None:
        """Creates the location of a cache with these top-level ``names``.

        Raises:
            CacheError: one of them is a link, which may lead out of the cache, or a file is in the folder's place.
            OSError: the folder cannot be created.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise CacheError(f"{self.root} is a file or lies below one; choose a folder for the cache") from error
        self._refuse_links(names)

    def _refuse_links(self, names: Iterable[str]) -> None:
        links = [name for name in sorted(names) if (self.root / name).is_symlink()]
        if links:
            raise CacheError(
                f"{self.root} holds links ({', '.join(links)}) that lead out of the cache; put real folders there"
            )

    def stage(self, owner: str) -> LocalStage:
        """Starts a set of files that are published together; ``owner`` is that of the writer's lock."""
        return LocalStage(root=self.root, owner=owner)

    def delete(self, key: str) -> None:
        """Deletes a file, durably; does nothing if it does not exist."""
        path = self.root / key
        if path.is_symlink() or path.exists():
            refuse_links_out(self.root, path.parent)
            path.unlink()
            fsync_folder(path.parent)

    def remove(self, folder: str) -> None:
        """Deletes a folder, which must not be a link, with its contents; does nothing if it does not exist."""
        path = self.root / folder
        if path.is_dir():
            refuse_links_out(self.root, path)
            shutil.rmtree(path)
            fsync_folder(path.parent)

    def lock(self, *, shared: bool) -> WriterLock:
        """Takes the writer's lock, exclusive or ``shared``.

        Raises:
            CacheError: it is taken and cannot be shared, or the file system has no locks.
        """
        self._refuse_links((DONE, LOCKS, STAGING, LOCK))
        return WriterLock(path=self.root / LOCK, shared=shared)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Serialises creating and resuming the cache among shared writers."""
        lock = FileLock(self.root / LOCKS / "opening", wait=True)
        try:
            yield
        finally:
            lock.release(remove=True)

    def remove_partial(self, *, host: str) -> int:
        """Removes the ``*.partial`` files of dead writers whose owner starts with ``host``; returns their number.

        Dead writers no longer hold the writer's lock. On network file systems with local locks, a shared writer cannot
        tell whether owners on other hosts are alive.
        """
        folders = (self.root, self.root / STAGING, self.root / DONE)
        files = [file for folder in folders for file in folder.glob("*.partial")]
        alive = live_owners(self.root)  # listed after the files: an owner takes its lock before it creates a file
        dead = [file for file in files if (owner := file.name.split(".")[-2]) not in alive and owner.startswith(host)]
        for file in dead:
            file.unlink(missing_ok=True)
        return len(dead)

    @contextmanager
    def translate_errors(self, doing: str) -> Iterator[None]:
        """Turns storage errors while ``doing`` into errors with a remedy.

        Raises:
            DiskSpaceError: the storage is full.
            CacheError: the storage is not writable, or failed.
        """
        safe = "what was committed before is safe; run the same command again to go on"
        try:
            yield
        except Xd3dError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self.root).free if self.root.exists() else 0
                raise DiskSpaceError(
                    f"No room left for the cache {self.root} while {doing} ({free} bytes free); free some space: {safe}"
                ) from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise CacheError(
                    f"The cache {self.root} cannot be written while {doing} ({error.strerror}: {error.filename}); "
                    "mount it writable, change its owner, or choose another folder"
                ) from error
            raise CacheError(f"The disk failed under the cache {self.root} while {doing} ({error}); {safe}") from error

    def free_bytes(self) -> int:
        """Returns the free bytes on the disk of the folder, which need not exist yet."""
        return free_bytes(self.root)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Applies ``work`` to every item, ``parallel`` at a time; results keep the order of the items."""
        return map(work, items)

"""A cache in a local folder."""

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
from ...files import fsync_folder
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
    """The files under the folder ``root``."""

    root: Path
    parallel: ClassVar[int] = 1

    @property
    def location(self) -> Path:
        """The folder."""
        return self.root

    @property
    def open_files(self) -> int:
        """A quarter of the process's limit, at most 4096."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return _OPEN_FILES if allowed == resource.RLIM_INFINITY else min(_OPEN_FILES, allowed // 4)

    def describe(self, key: str = "") -> str:
        """Returns the path of a file."""
        return str(self.root / key)

    def exists(self, key: str) -> bool:
        """Returns whether the file exists."""
        return (self.root / key).exists()

    def version(self, key: str) -> Version | None:
        """Returns inode, size and modification time of a file; None if it does not exist."""
        try:
            return file_version((self.root / key).lstat())
        except FileNotFoundError:
            return None

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Returns the size of each file that exists."""
        found = {}
        for key in keys:
            try:
                found[key] = os.stat(f"{self.root}/{key}").st_size  # noqa: PTH116 - a path object costs as much again
            except OSError:
                continue
        return found

    def listing(self, folder: str) -> dict[str, Version]:
        """Returns the names in a folder with their versions."""
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
        """Yields every file below the folder with its size; links count as files."""
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
        """Returns the content of a regular file."""
        path = self.root / key
        descriptor, _ = open_regular(path)
        try:
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
                return file.read()
        except OSError as error:
            raise CacheError(f"{path} cannot be read ({error.strerror})") from error

    def open(self, key: str) -> LocalFile:
        """Opens a regular file."""
        return LocalFile(f"{self.root}/{key}")

    def prepare(self, names: Iterable[str]) -> None:
        """Creates the folder; raises if it contains links out of the cache, or a file is in its place."""
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
        """Starts a set of files."""
        return LocalStage(root=self.root, owner=owner)

    def delete(self, key: str) -> None:
        """Deletes a file and flushes its folder."""
        path = self.root / key
        if path.is_symlink() or path.exists():
            refuse_links_out(self.root, path.parent)
            path.unlink()
            fsync_folder(path.parent)

    def remove(self, folder: str) -> None:
        """Deletes a folder, which must not be a link."""
        path = self.root / folder
        if path.is_dir():
            refuse_links_out(self.root, path)
            shutil.rmtree(path)
            fsync_folder(path.parent)

    def lock(self, *, shared: bool) -> WriterLock:
        """Takes the advisory lock of the folder."""
        self._refuse_links((DONE, LOCKS, STAGING, LOCK))
        return WriterLock(path=self.root / LOCK, shared=shared)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Blocks while another writer is opening the cache."""
        lock = FileLock(self.root / LOCKS / "opening", wait=True)
        try:
            yield
        finally:
            lock.release(remove=True)

    def remove_partial(self, *, host: str) -> int:
        """Removes the ``*.partial`` files of dead writers, which no longer hold the writer's lock.

        ``host`` restricts it to owners on one host: on network file systems with local locks, a shared writer cannot
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
        """Turns disk errors into errors with a remedy."""
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
        path = self.root.absolute()
        return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Applies ``work`` to one item after the other."""
        return map(work, items)

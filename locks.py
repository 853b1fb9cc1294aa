"""Advisory file locks (``flock``), which the system releases when the process that holds them ends.

``writer.lock`` of a cache is exclusive for a single run and for maintenance, or shared by cooperating workers. A worker
also locks each shard that it writes. In addition, every holder keeps one file in ``locks/`` locked: it tells other
processes who the holder is, and which temporary files are still in use. ``flock`` works over NFS too.
"""

import errno
import fcntl
import logging
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CacheError, RunError
from .files import host_name, unique_name

__all__ = ["LOCKS", "FileLock", "WriterLock", "exclusive_lock", "live_owners"]

log = logging.getLogger(__name__)

LOCKS = "locks"  #: folder of lock files for holders and shards, beside ``writer.lock``

_HOLDER, _CLAIM = ".holder", ".claim"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class FileLock:
    """A lock on ``path``, held until ``release`` or the end of the process; a forked child does not inherit it.

    Raises:
        BlockingIOError: the lock is taken; with ``wait`` the call blocks instead.
    """

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = False) -> None:
        self.path = path
        self._descriptor = _locked(path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._descriptor >= 0

    def write(self, text: str) -> None:
        """Replaces the content of the lock file with ``text``."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self, *, remove: bool = False) -> None:
        """Releases the lock; ``remove`` deletes the file first. It may be called more than once."""
        if self._descriptor >= 0:
            if remove:
                _remove(self.path)
            os.close(self._descriptor)
            self._descriptor = -1
        _held.discard(self)


class WriterLock:
    """The writer's lock of a cache, at ``path`` (``writer.lock`` in its folder), exclusive or ``shared``.

    ``owner`` is a name of the holder that is unique across machines; it starts with ``host``.

    Raises:
        CacheError: the lock is taken (the message names the holders), or the file system has no locks.
    """

    def __init__(self, *, path: Path, shared: bool = False) -> None:
        self.path = path
        self.shared = shared
        self.host = host_name() + "~"
        self.owner = unique_name()
        self._locks = path.parent / LOCKS
        self._claims: dict[int, FileLock] = {}
        self._locks.mkdir(exist_ok=True)
        try:
            self._presence = FileLock(self._locks / f"{self.owner}{_HOLDER}", wait=True)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise CacheError(
                f"The file system of {path.parent} has no locks ({error.strerror}), which writers of a cache need: keep"
                " it elsewhere (XD3D_CACHES), or mount the file system with locks (Lustre: -o flock)"
            ) from error
        try:
            self._presence.write(f"pid {os.getpid()} on {socket.gethostname()}")
            self._lock = FileLock(path, shared=shared)
        except BlockingIOError as error:
            self._presence.release(remove=True)
            raise CacheError(self._refusal()) from error
        except BaseException:
            self._presence.release(remove=True)
            raise

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock.held

    @property
    def presence_key(self) -> str:
        """Key of a file that exists in the cache while the lock is held."""
        return f"{LOCKS}/{self._presence.path.name}"

    def claim(self, shard: int) -> bool:
        """Locks a shard among the writers that share the cache; returns False if another writer has it."""
        if shard not in self._claims:
            try:
                self._claims[shard] = FileLock(self._locks / f"{shard}{_CLAIM}")
            except BlockingIOError:
                return False
        return True

    def has_claimed(self, shard: int) -> bool:
        """Returns whether this holder may write ``shard``: its lock is exclusive, or it has claimed the shard."""
        return self.held and (not self.shared or shard in self._claims)

    def unclaim(self, shard: int) -> None:
        """Releases the claim on a shard, if there is one."""
        if shard in self._claims:
            self._claims.pop(shard).release(remove=True)

    def release(self) -> None:
        """Releases the lock and all claims. It may be called more than once."""
        for shard in list(self._claims):
            self.unclaim(shard)
        self._presence.release(remove=True)
        self._lock.release()

    def _refusal(self) -> str:
        names = sorted(live_owners(self.path.parent).values())
        others = f" and {len(names) - 3} more" if len(names) > 3 else ""
        who = ", ".join(names[:3]) + others or "a process that is just ending"
        return (
            f"Another writer uses the cache {self.path.parent}: {who}. "
            "Wait for it or stop it; its lock is released when it ends, there is no file to delete"
        )


@contextmanager
def exclusive_lock(folder: Path, *, work: str, option: str = "", wait: bool = False) -> Iterator[None]:
    """Creates ``folder`` and locks it for the block; on a file system without locks it only logs a warning.

    ``work`` is a verb phrase for messages ("trains"); ``option`` is the option with which to choose another folder.
    With ``wait`` it blocks until another process releases the lock.

    Raises:
        RunError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = None
    try:
        lock = FileLock(folder / "lock", wait=wait)
    except BlockingIOError as error:
        other = f", or choose another folder with {option}" if option else ""
        raise RunError(f"Another process {work} in {folder}; wait for its end or stop it{other}") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "The file system of %s has no locks (%s): make sure that no other process %s there", folder, error, work
        )
    try:
        yield
    finally:
        if lock is not None:
            lock.release(remove=True)


def live_owners(folder: Path) -> dict[str, str]:
    """Returns the holders of the writer's lock of the cache in ``folder``: owner -> "pid 1 on host".

    Lock files of dead processes are removed.
    """
    found = {}
    for file in sorted((folder / LOCKS).glob("*")):
        if (text := _holder_of(file)) is not None and file.suffix == _HOLDER:
            found[file.name.removesuffix(_HOLDER)] = text
    return found


def _holder_of(file: Path) -> str | None:
    """Returns the text of a locked file; removes a file that is not locked and returns None."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return os.pread(descriptor, 200, 0).decode(errors="replace") or "an unnamed process"
    else:
        if _is_file(descriptor, file):
            _remove(file)
        return None
    finally:
        os.close(descriptor)


def _locked(path: Path, mode: int) -> int:
    """Opens and locks ``path``; tries again if the file was removed between opening and locking."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, mode)
            if _is_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Deletes a lock file; a file that cannot be deleted (on a read-only disk, say) does no harm."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def _drop_in_child() -> None:
    """Closes the copies in a forked child, which would keep the locks of a dead parent; the parent keeps its locks."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)

"""Who may write a cache: advisory locks on files, which the system drops when their process dies.

``writer.lock`` is held alone by a plain run and by maintenance, or shared by workers that cooperate; a worker then
claims each shard it works on with a lock of its own. Every holder also keeps a file of its own locked in ``locks/``:
by it others can name who is at work, and tell a co-worker's files from litter. ``flock`` reaches over NFS too.
"""

import errno
import fcntl
import logging
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from .errors import CacheError, RunError
from .files import host_name, unique_name

__all__ = ["LOCKS", "FileLock", "WriterLock", "blocking_lock", "live_owners", "exclusive_lock"]

log = logging.getLogger(__name__)

LOCKS = "locks"  #: folder, beside ``writer.lock``, of the files that holders and claims keep locked

_HOLDER, _CLAIM = ".holder", ".claim"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class FileLock:
    """Hold the lock on ``path`` until ``release`` or the end of the process; a forked child does not inherit it.

    Raises:
        BlockingIOError: another one holds it; with ``wait`` its end is awaited instead.
    """

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = False) -> None:
        self.path = path
        self._descriptor = _locked(path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._descriptor >= 0

    def say(self, text: str) -> None:
        """Make ``text`` the content of the file."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self, *, remove: bool = False) -> None:
        """Let the next one in, and with ``remove`` take the file away first; harmless when called again."""
        if self._descriptor >= 0:
            if remove:
                _remove(self.path)
            os.close(self._descriptor)
            self._descriptor = -1
        _held.discard(self)


class WriterLock:
    """The right to write the cache in whose folder ``path`` (``writer.lock``) lies, alone or ``shared`` with others.

    ``owner`` is a name that no other holder has, on any machine: it begins with ``host``, then the process and a
    random part.

    Raises:
        CacheError: others hold it, and not in a way that can be shared; the message gives their process ids and hosts.
    """

    def __init__(self, *, path: Path, shared: bool = False) -> None:
        self.path = path
        self.shared = shared
        self.host = host_name() + "~"
        self.owner = unique_name()
        self._locks = path.parent / LOCKS
        self._claims: dict[int, FileLock] = {}
        self._locks.mkdir(exist_ok=True)
        self._presence = FileLock(self._locks / f"{self.owner}{_HOLDER}", wait=True)
        try:
            self._presence.say(f"pid {os.getpid()} on {socket.gethostname()}")
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
    def witness(self) -> str:
        """Key of a file that is in the cache while this is held."""
        return f"{LOCKS}/{self._presence.path.name}"

    def claim(self, shard: int) -> bool:
        """Claim a shard among those who share the cache; False when another one has it now."""
        if shard not in self._claims:
            try:
                self._claims[shard] = FileLock(self._locks / f"{shard}{_CLAIM}")
            except BlockingIOError:
                return False
        return True

    def has_claimed(self, shard: int) -> bool:
        """Whether this holder may write ``shard``: it is alone, or has claimed it."""
        return self.held and (not self.shared or shard in self._claims)

    def unclaim(self, shard: int) -> None:
        """Give a claim up; harmless where there is none."""
        if shard in self._claims:
            self._claims.pop(shard).release(remove=True)

    def release(self) -> None:
        """Let the next writer in; harmless when called again."""
        for shard in list(self._claims):
            self.unclaim(shard)
        self._presence.release(remove=True)
        self._lock.release()

    def _refusal(self) -> str:
        names = sorted(live_owners(self.path.parent).values())
        others = f" and {len(names) - 3} more" if len(names) > 3 else ""
        who = ", ".join(names[:3]) + others or "a process that ends just now"
        return (
            f"Another writer is at work on the cache {self.path.parent}: {who}. "
            "Wait for it or stop it; its lock ends with it, so there is no file to delete"
        )


@contextmanager
def exclusive_lock(folder: Path, *, work: str, option: str = "") -> Iterator[None]:
    """Make ``folder`` and keep other processes out of it; a disk that has no locks gets a warning instead.

    Raises:
        RunError: another process is at the same ``work`` there; ``option`` is the one that names another folder.
    """
    try:
        lock = _lock_of(folder, work, wait=False)
    except BlockingIOError as error:
        other = f", or choose another folder with {option}" if option else ""
        raise RunError(f"Another process {work} in {folder}; wait for its end or stop it{other}") from error
    with lock:
        yield


def blocking_lock(folder: Path, *, work: str) -> AbstractContextManager[object]:
    """As ``exclusive_lock``, but the end of another process at the same ``work`` is awaited."""
    return _lock_of(folder, work, wait=True)


def _lock_of(folder: Path, work: str, *, wait: bool) -> AbstractContextManager[object]:
    """Make ``folder`` and lock it; leaving what is returned lets the next one in."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "lock", wait=wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("The disk of %s has no locks (%s): see to it that no other process %s there", folder, error, work)
        return nullcontext()
    held = ExitStack()
    held.callback(lock.release, remove=True)
    return held


def live_owners(folder: Path) -> dict[str, str]:
    """Owners that hold the writer's lock of the cache in ``folder``: name -> "pid 1 on host".

    What dead ones left in ``locks/`` is removed on the way.
    """
    found = {}
    for file in sorted((folder / LOCKS).glob("*")):
        if (text := _holder_of(file)) is not None and file.suffix == _HOLDER:
            found[file.name.removesuffix(_HOLDER)] = text
    return found


def _holder_of(file: Path) -> str | None:
    """What a locked file says; None, and the file is gone, where nobody holds it."""
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
    """A descriptor of ``path`` with the lock; tried again where the file was removed between opening and locking."""
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
    """Tidy up; a lock file that stays, on a disk that turned read-only say, locks nothing."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def _drop_in_child() -> None:
    """Close the child's copy, which would keep a dead parent's lock alive; the parent's own lock stays."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)

"""One writer a cache: an advisory lock on ``writer.lock`` that the system drops when its process dies."""

import fcntl
import os
import socket
import weakref
from pathlib import Path

from ..errors import CacheError

__all__ = ["WriterLock"]


class WriterLock:
    """Hold the lock until ``release`` or the end of the process; a forked child does not inherit it.

    Raises:
        CacheError: another writer holds it; the message gives its process id and host.
    """

    def __init__(self, *, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unnamed process"
            os.close(descriptor)
            raise CacheError(
                f"Another writer is at work on the cache {path.parent}: {owner}. "
                "Wait for it or stop it; its lock ends with it, so there is no file to delete"
            ) from error
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Let the next writer in; harmless when called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        _held.discard(self)


_held: "weakref.WeakSet[WriterLock]" = weakref.WeakSet()


def _drop_in_child() -> None:
    """Close the child's copy, which would keep a dead parent's lock alive; the parent's own lock stays."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)

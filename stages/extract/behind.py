"""Writing behind the model: one thread commits a shard while the model computes the next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

__all__ = ["WriteBehind"]


class WriteBehind:
    """Runs writes in a thread of its own, one at a time; use it in a ``with`` block inside that of the writer.

    One shard is written while another is filled and no more wait, so memory does not grow with the number of images.
    The block ends when what was handed over is written, also when an error or a signal ends it: a whole shard is kept.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._at_work: Future[object] | None = None

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()

    def put(self, write: Callable[[], object]) -> None:
        """Have ``write`` run once the one before it is done; raises what that one raised."""
        self.wait()
        self._at_work = self._pool.submit(write)

    def check(self) -> None:
        """Raise what the write that is under way has raised by now, if anything; returns at once."""
        if self._at_work is not None and self._at_work.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is left to write; raises what writing raised."""
        if self._at_work is not None:
            self._at_work.result()

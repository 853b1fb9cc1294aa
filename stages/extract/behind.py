"""Writing behind the model: threads commit shards while the model computes the next."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

__all__ = ["WriteBehind"]


class WriteBehind:
    """Runs writes in ``threads`` threads; use it in a ``with`` block inside that of the writer.

    A write for each thread is under way while another shard is filled, and no more wait, so memory does not grow with
    the number of images. The block ends when what was handed over is written, also when an error or a signal ends it:
    a whole shard is kept.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._under_way: set[Future[object]] = set()

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.check()

    def put(self, write: Callable[[], object]) -> None:
        """Have ``write`` run as soon as a thread is free; raises what an earlier write raised."""
        self.check()
        while len(self._under_way) >= self._threads:
            wait(self._under_way, return_when=FIRST_COMPLETED)
            self.check()
        self._under_way.add(self._pool.submit(write))

    def check(self) -> None:
        """Raise what a write has raised by now, if any has; returns at once."""
        done = {write for write in self._under_way if write.done()}
        self._under_way -= done
        for write in done:
            write.result()

    def wait(self) -> None:
        """Return when nothing is left to write; raises what writing raised."""
        wait(self._under_way)
        self.check()

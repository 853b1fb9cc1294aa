"""Writes scenes in this process or in several; the bytes are the same."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

from ...errors import RunError
from ...processes import processors

__all__ = ["in_processes"]

Job = TypeVar("Job")


def in_processes(write: Callable[[Job], int], jobs: Sequence[Job], workers: int | None) -> Iterator[int]:
    """Writes scenes in this process or in ``workers`` (None: one per processor); yields the frames of each when done.

    Raises:
        RunError: a worker was killed.
    """
    workers = min(workers or processors(), len(jobs))
    if workers <= 1:
        yield from map(write, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_exit_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(write, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "A process that renders scenes was killed, perhaps because memory ran out; run the same command again,"
                " with fewer workers. A script must call it below: if __name__ == '__main__':"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _exit_with_parent() -> None:
    """Ends this worker when its parent process ends, even if that was killed."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Maps items in background threads, in order, ahead of the consumer and with bounded memory."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import TypeVar

from .errors import CacheError

__all__ = ["map_ahead", "ring_slots"]

Item = TypeVar("Item")
Made = TypeVar("Made")
AHEAD = 2  #: results that are ready or in progress, for each thread


def ring_slots(threads: int) -> int:
    """Number of results that ``map_ahead`` keeps in memory: the one in use, and those ahead of it."""
    return AHEAD * threads + 1


def map_ahead(
    make: Callable[[Item, int], Made], items: Iterable[Item], threads: int
) -> Generator[tuple[Made, float], None, None]:
    """Yields ``make(item, slot)`` for each item, in order, and the seconds spent waiting for it.

    ``threads`` threads run ``make`` for the next items meanwhile; with 0 threads, each item is made when it is
    requested. An exception is raised when the result of its item is requested. ``slot``, from 0 to
    ``ring_slots(threads) - 1``, names a buffer that ``make`` may fill: it is reused for another item as soon as the
    consumer requests the next result. Close the generator (``contextlib.closing``) to stop the threads early.

    Raises:
        CacheError: a result is requested in a process that was forked since: it does not have the threads.
    """
    if not threads:
        for item in items:
            begin = time.perf_counter()
            made = make(item, 0)
            yield made, time.perf_counter() - begin
        return
    process, slots = os.getpid(), ring_slots(threads)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="xd3d-loader")
    waiting: deque[Future[Made]] = deque()
    ahead = zip(count(), items)
    try:
        while True:
            if os.getpid() != process:
                raise CacheError(
                    "The prefetch threads belong to the process that started them; start anew after a fork"
                )
            for number, item in islice(ahead, slots - len(waiting)):
                waiting.append(pool.submit(make, item, number % slots))
            if not waiting:
                return
            begin = time.perf_counter()
            made = waiting.popleft().result()
            yield made, time.perf_counter() - begin
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

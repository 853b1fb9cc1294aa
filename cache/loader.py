"""Batches ahead of their consumer: threads make them in order, into a ring of buffers that are filled again and again.

A consumer works on one batch while threads make the next ones. Memory is bounded by the ring: a slot's buffer is filled
again only after the consumer has asked for the batch that follows the one it holds.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count, islice
from typing import TypeVar

from ..errors import CacheError
from .reader import FeatureReader
from .schema import ImageFeatures

__all__ = ["ReusedBuffer", "load_batches", "made_ahead", "ring_slots"]

Item = TypeVar("Item")
Made = TypeVar("Made")
AHEAD = 2  #: batches ready or in the making, for each thread


class ReusedBuffer:
    """Memory of one slot of a ring: arrays from ``allocate``, made when first used and again when a batch is larger."""

    def __init__(self, allocate: Callable[[int], ImageFeatures]) -> None:
        self._allocate = allocate
        self._held = allocate(0)

    def first(self, images: int) -> ImageFeatures:
        """Arrays for ``images`` images; they hold whatever was there before."""
        if len(self._held.geometry) < images:
            self._held = self._allocate(images)
        return self._held.first(images)


def ring_slots(threads: int) -> int:
    """How many batches ``made_ahead`` has in memory: the consumer's own, and those ahead of it."""
    return AHEAD * threads + 1


def made_ahead(
    make: Callable[[Item, int], Made], items: Iterable[Item], threads: int
) -> Generator[tuple[Made, float], None, None]:
    """Yield ``make(item, slot)`` for each item in order, and the seconds spent waiting for it.

    Threads make the next ones meanwhile (0 threads: each is made when it is asked for); an error in one is raised when
    its turn comes. ``slot``, 0 to ``ring_slots(threads) - 1``, is no other item's until the consumer asks for the next:
    then what was made with it may be overwritten. Close the generator (``contextlib.closing``) to stop threads early.

    Raises:
        CacheError: it is asked for a batch in a process forked since it began: its threads are not there.
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
                raise CacheError("Batches are made by threads of the process that began; begin anew after a fork")
            for number, item in islice(ahead, slots - len(waiting)):
                waiting.append(pool.submit(make, item, number % slots))
            if not waiting:
                return
            begin = time.perf_counter()
            made = waiting.popleft().result()
            yield made, time.perf_counter() - begin
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def load_batches(
    reader: FeatureReader, batches: Iterable[Sequence[int]], *, threads: int = 2
) -> Generator[ImageFeatures, None, None]:
    """Yield the features of each list of rows, in order, read ahead by ``threads``.

    A batch's arrays are overwritten after the next is asked for: copy what must outlive it. Close the generator
    (``contextlib.closing``) to stop the threads early.

    Raises:
        CacheError: a row cannot be read; it is raised when the batch's turn comes.
    """
    buffers = [ReusedBuffer(reader.allocate) for _ in range(ring_slots(threads))]

    def make(rows: Sequence[int], slot: int) -> ImageFeatures:
        return reader.read(rows, buffers[slot].first(len(rows)))

    with closing(made_ahead(make, batches, threads)) as made:
        for features, _ in made:
            yield features

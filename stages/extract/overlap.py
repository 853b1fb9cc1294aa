"""Computes and writes shards, with decoding, the model, the agents and writing overlapped in threads.

Runs of one process, ``--shard`` parts of a run and workers of a cluster share this code.
"""

import contextlib
from collections import ChainMap, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np

from ...cache.layout import Shard
from ...cache.stored import StoredRows
from ...cache.writer import CacheWriter
from ...processes import processors
from .extractor import StageClock
from .images import PictureArray, PictureSource

__all__ = ["Batch", "BatchExtractor", "LARGEST_DECODERS", "WriteBehind", "decode_ahead", "fill_shards", "host_threads"]

LARGEST_WRITERS = 4  #: writer threads, each with one shard in memory
LARGEST_DECODERS = 16  #: decoder threads; they decode some 900 pictures of 1600 x 900 a second
PREFETCHED_BATCHES = 3  #: batches decoded ahead; more if a batch has fewer pictures than there are threads
Batch = tuple[range, np.ndarray, dict[int, str]]  #: image rows, their pictures, and row -> reason for failed ones


@runtime_checkable
class BatchExtractor(Protocol):
    """Computes the stored rows of a batch of pictures, as ``FeatureExtractor`` does."""

    clock: StageClock
    batch_size: int

    def begin(self, pictures: PictureArray, keys: Sequence[str]) -> Callable[[], StoredRows]:
        """Runs the model on a batch; ``keys`` are those of the images.

        Returns a function that computes the stored rows, numbered by batch index. It may run in another thread while
        the next batch is in the model.
        """


def fill_shards(
    writer: CacheWriter,
    shards: Iterable[Shard],
    extractor: BatchExtractor,
    pictures: PictureSource,
    report: Callable[[int], object],
) -> list[Shard]:
    """Computes and writes ``shards``; returns those that were skipped because another writer has claimed them.

    ``report`` is called after each batch with its number of images. An exception from it ends the work; a shard that
    is complete by then is still written.

    Raises:
        CacheError: the cache cannot be written.
        DiskSpaceError: the disk is full.
    """
    clock, left, claimed = extractor.clock, list[Shard](), deque[Shard]()
    batches = decode_ahead(pictures, _batches(_claims(writer, shards, claimed, left), extractor.batch_size))
    parts: list[Future[StoredRows]] = []
    rest: Future[StoredRows] | None = None
    with (
        contextlib.closing(batches),
        ThreadPoolExecutor(1, thread_name_prefix="agents") as behind,
        WriteBehind(host_threads(LARGEST_WRITERS)) as writes,
    ):
        while True:
            with clock.during("decoding"):
                batch = next(batches, None)
            if batch is None:
                break
            chosen, images, failures = batch
            finish = extractor.begin(images, pictures.keys(chosen))
            with clock.during("agents"):
                if rest is not None:
                    rest.result()  # one batch at a time waits, with its maps
                rest = behind.submit(_rows, finish, chosen, failures)
            parts.append(rest)
            writes.check()
            if chosen.stop == claimed[0].last:
                with clock.during("writing"):
                    writes.put(partial(_write, writer, claimed.popleft(), parts))
                parts = []
            report(len(chosen))
        with clock.during("writing"):
            writes.wait()
    return left


def _rows(finish: Callable[[], StoredRows], chosen: range, failures: dict[int, str]) -> StoredRows:
    return finish().renumbered(chosen).with_failures(failures)


def _write(writer: CacheWriter, shard: Shard, parts: Sequence[Future[StoredRows]]) -> None:
    writer.write_rows(shard, StoredRows.join([part.result() for part in parts]))


def _claims(writer: CacheWriter, shards: Iterable[Shard], claimed: deque[Shard], left: list[Shard]) -> Iterator[Shard]:
    """Yields the shards that could be claimed, each as late as prefetching allows; the others go to ``left``."""
    for shard in shards:
        if writer.claim(shard):
            claimed.append(shard)
            yield shard
        else:
            left.append(shard)


def _batches(shards: Iterable[Shard], size: int) -> Iterator[range]:
    """Splits each shard into batches from its first row, so batches do not depend on where a run was resumed."""
    for shard in shards:
        for first in range(shard.first, shard.last, size):
            yield range(first, min(first + size, shard.last))


def decode_ahead(pictures: PictureSource, batches: Iterable[range]) -> Generator[Batch, None, None]:
    """Decodes the pictures of batches in threads, a few batches ahead; failed pictures are black.

    Each image is one task, all its views together.
    """
    waiting: deque[tuple[range, list[Future[tuple[np.ndarray, dict[int, str]]]]]] = deque()
    threads = host_threads(LARGEST_DECODERS)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for rows in batches:
            waiting.append((rows, [pool.submit(pictures.read, views) for views in pictures.by_image(rows)]))
            if len(waiting) > max(PREFETCHED_BATCHES, threads // len(rows)):
                yield _joined(*waiting.popleft())
        while waiting:
            yield _joined(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def host_threads(largest: int) -> int:
    """Returns the threads for work beside the model: one per available processor, from 2 to ``largest``."""
    return max(2, min(largest, processors()))


def _joined(rows: range, tasks: Iterable[Future[tuple[np.ndarray, dict[int, str]]]]) -> Batch:
    found = [task.result() for task in tasks]
    return rows, np.concatenate([images for images, _ in found]), dict(ChainMap(*(failures for _, failures in found)))


class WriteBehind:
    """Runs writes in ``threads`` background threads; use it in a ``with`` block inside that of the writer.

    At most one write per thread is in progress and none is queued, which bounds the memory. The block ends when every
    submitted write has finished, also after an error or a signal: a complete shard is never lost.
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
        """Submits ``write`` as soon as a thread is free; raises the exception of an earlier write, if any."""
        self.check()
        while len(self._under_way) >= self._threads:
            wait(self._under_way, return_when=FIRST_COMPLETED)
            self.check()
        self._under_way.add(self._pool.submit(write))

    def check(self) -> None:
        """Raises the exception of a finished write, if any; does not block."""
        done = {write for write in self._under_way if write.done()}
        self._under_way -= done
        for write in done:
            write.result()

    def wait(self) -> None:
        """Blocks until all writes have finished; raises the exception of a write, if any."""
        wait(self._under_way)
        self.check()

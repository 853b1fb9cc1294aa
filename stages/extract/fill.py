"""Filling shards: pictures are decoded ahead of the model, and a shard is written while the next one is computed.

A run of one process, one part of a shared-out run and a worker of a cluster all come through here.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from ...cache.layout import CacheLayout, Shard
from ...cache.rows import arrays_of, features_of
from ...cache.schema import ImageFeatures
from ...cache.writer import CacheWriter
from .behind import WriteBehind
from .extractor import FeatureExtractor, PictureSource

__all__ = ["fill_shards"]

DECODERS = 2  #: threads that decode images ahead of the model
AHEAD = 3  #: batches that may wait decoded

Batch = tuple[range, np.ndarray, dict[int, str]]  #: image rows, their pictures, and why some could not be read


def fill_shards(
    writer: CacheWriter,
    shards: Iterable[Shard],
    extractor: FeatureExtractor,
    pictures: PictureSource,
    report: Callable[[int], object],
) -> list[Shard]:
    """Compute and write ``shards``; return those that were left because another writer has them.

    ``report`` is called after each batch with its number of images; what it raises ends the work, and a shard that is
    whole by then is still written.

    Raises:
        CacheError: the cache cannot be written.
        DiskSpaceError: the disk is full.
    """
    clock, left, claimed = extractor.clock, list[Shard](), deque[Shard]()
    batches = _decoded(pictures, _batches(_claims(writer, shards, claimed, left), extractor.batch_size))
    rows: _ShardRows | None = None
    with contextlib.closing(batches), WriteBehind() as behind:
        while True:
            with clock.during("decoding"):
                batch = next(batches, None)
            if batch is None:
                break
            chosen, images, failures = batch
            rows = rows or _ShardRows(writer.layout, claimed.popleft())
            rows.add(extractor(images, pictures.keys(chosen)), failures)
            behind.check()
            if rows.full:
                with clock.during("writing"):
                    behind.put(partial(writer.write_shard, rows.shard, rows.features, rows.failures))
                rows = None
            report(len(chosen))
        with clock.during("writing"):
            behind.wait()
    return left


class _ShardRows:
    """The features of one shard, filled batch by batch."""

    def __init__(self, layout: CacheLayout, shard: Shard) -> None:
        rows = len(shard.rows)
        self.shard = shard
        self.failures: dict[int, str] = {}
        self._layout, self._filled, self._rows = layout, 0, rows
        self._arrays = {
            name: np.empty((rows, *array.row_shape), array.dtype if array.dtype.kind == "u" else np.float32)
            for name, array in layout.computed.items()
        }

    @property
    def full(self) -> bool:
        return self._filled == self._rows

    @property
    def features(self) -> ImageFeatures:
        return features_of(self._arrays)

    def add(self, features: ImageFeatures, failures: dict[int, str]) -> None:
        count = len(features.geometry)
        for name, values in arrays_of(features, self._layout, count).items():
            self._arrays[name][self._filled : self._filled + count] = values
        self._filled += count
        self.failures.update(failures)


def _claims(writer: CacheWriter, shards: Iterable[Shard], claimed: deque[Shard], left: list[Shard]) -> Iterator[Shard]:
    """Pass on the shards that can be claimed, each as late as decoding ahead allows, and note what became of each."""
    for shard in shards:
        if writer.claim(shard):
            claimed.append(shard)
            yield shard
        else:
            left.append(shard)


def _batches(shards: Iterable[Shard], size: int) -> Iterator[range]:
    """Cut each shard into batches from its first row on: an image's batch does not depend on where a run began."""
    for shard in shards:
        for first in range(shard.first, shard.last, size):
            yield range(first, min(first + size, shard.last))


def _decoded(pictures: PictureSource, batches: Iterable[range]) -> Generator[Batch, None, None]:
    """Read the pictures of batches in threads, a few batches ahead; failed pictures are black and keep their place."""
    waiting: deque[tuple[range, Future[tuple[np.ndarray, dict[int, str]]]]] = deque()
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
    try:
        for rows in batches:
            waiting.append((rows, pool.submit(pictures.read, rows)))
            if len(waiting) > AHEAD:
                done, future = waiting.popleft()
                yield done, *future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, *future.result()
    finally:
        pool.shutdown(cancel_futures=True)

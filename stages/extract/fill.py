"""Filling shards: pictures are decoded ahead of the model, and shards are written while the next one is computed.

A run of one process, one part of a shared-out run and a worker of a cluster all come through here.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from ...cache.layout import Shard
from ...cache.stored import StoredRows
from ...cache.writer import CacheWriter
from .ahead import decode_ahead, host_threads
from .behind import WriteBehind
from .extractor import FeatureExtractor, PictureSource

__all__ = ["fill_shards"]

LARGEST_WRITERS = 4  #: threads that write shards, each with a shard in memory


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
    batches = decode_ahead(pictures, _batches(_claims(writer, shards, claimed, left), extractor.batch_size))
    parts: list[StoredRows] = []
    with contextlib.closing(batches), WriteBehind(host_threads(LARGEST_WRITERS)) as behind:
        while True:
            with clock.during("decoding"):
                batch = next(batches, None)
            if batch is None:
                break
            chosen, images, failures = batch
            parts.append(extractor(images, pictures.keys(chosen)).renumbered(chosen).with_failures(failures))
            behind.check()
            if chosen.stop == claimed[0].last:
                with clock.during("writing"):
                    behind.put(partial(writer.write_rows, claimed.popleft(), StoredRows.join(parts)))
                parts = []
            report(len(chosen))
        with clock.during("writing"):
            behind.wait()
    return left


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

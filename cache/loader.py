"""Prefetches batches of features in background threads into a ring of reused buffers."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing

from ..prefetch import map_ahead, ring_slots
from .reader import FeatureReader
from .schema import ImageFeatures

__all__ = ["ReusedBuffer", "load_batches"]


class ReusedBuffer:
    """A buffer from ``allocate`` that is allocated on first use, and again only for a larger batch."""

    def __init__(self, allocate: Callable[[int], ImageFeatures]) -> None:
        self._allocate = allocate
        self._buffer = allocate(0)

    def first(self, images: int) -> ImageFeatures:
        """Returns uninitialised arrays for ``images`` images."""
        if len(self._buffer.geometry) < images:
            self._buffer = self._allocate(images)
        return self._buffer.first(images)


def load_batches(
    reader: FeatureReader, batches: Iterable[Sequence[int]], *, threads: int = 2
) -> Generator[ImageFeatures, None, None]:
    """Yields the features of each list of rows, in order, prefetched by ``threads``.

    The arrays of a batch are overwritten after the next one is requested: copy them to keep them. Close the generator
    (``contextlib.closing``) to stop the threads early.

    Raises:
        CacheError: a row cannot be read; raised when its batch is requested.
    """
    buffers = [ReusedBuffer(reader.allocate) for _ in range(ring_slots(threads))]

    def make(rows: Sequence[int], slot: int) -> ImageFeatures:
        return reader.read(rows, buffers[slot].first(len(rows)))

    with closing(map_ahead(make, batches, threads)) as made:
        for features, _ in made:
            yield features

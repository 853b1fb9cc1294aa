"""Reads batches of features ahead of the consumer, in background threads, into a ring of reused buffers."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing

from ..prefetch import map_ahead, ring_slots
from .reader import FeatureReader
from .schema import ImageFeatures

__all__ = ["ReusedBuffer", "load_batches"]


class ReusedBuffer:
    """A buffer that is allocated by ``allocate`` when it is first used, and again when a batch is larger."""

    def __init__(self, allocate: Callable[[int], ImageFeatures]) -> None:
        self._allocate = allocate
        self._held = allocate(0)

    def first(self, images: int) -> ImageFeatures:
        """Arrays for ``images`` images; they hold whatever was there before."""
        if len(self._held.geometry) < images:
            self._held = self._allocate(images)
        return self._held.first(images)


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

    with closing(map_ahead(make, batches, threads)) as made:
        for features, _ in made:
            yield features

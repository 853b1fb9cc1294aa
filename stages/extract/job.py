"""The job of stage one: every image of an index through the model, into a cache, shard by shard.

Call it again after an interruption: committed shards stay, the others are computed anew from the same batches, so the
bytes are those of an unbroken run.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...cache.fingerprint import fingerprint_digest
from ...cache.info import cache_info
from ...cache.layout import GEOMETRY, CacheLayout, Shard
from ...cache.schema import ImageFeatures
from ...cache.stores import open_store
from ...cache.views import view_keys
from ...cache.writer import CacheWriter
from ...errors import DiskSpaceError
from ...progress import progress
from ..datasets.index import FrameIndex
from .behind import WriteBehind
from .clock import ACTIVITIES
from .extractor import FeatureExtractor, PictureSource
from .fingerprint import feature_fingerprint
from .plan import images_per_frame, shard_bytes, stored_bytes
from .settings import ExtractSettings

__all__ = ["ExtractSummary", "extract_features"]

log = logging.getLogger(__name__)

DECODERS = 2  #: threads that decode images ahead of the model
AHEAD = 3  #: batches that may wait decoded

Batch = tuple[range, np.ndarray, dict[int, str]]  #: image rows, their pictures, and why some could not be read


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What stands after a run: ``done`` images have features, ``failed`` a reason; ``seconds`` is this run's time.

    Each view of an image counts as an image.
    ``images_per_second`` counts from the first image on, the loading of the model left out; ``shares`` says what part
    of that time the model and the agents took, and what part was spent waiting for decoding and for writing.
    """

    cache: Path | str
    fingerprint: str
    images: int
    done: int
    failed: int
    seconds: float
    images_per_second: float
    shares: Mapping[str, float]


def extract_features(
    index: FrameIndex,
    settings: ExtractSettings,
    cache_path: Path | str,
    *,
    retry_failed: bool = False,
    root: Path | None = None,
) -> ExtractSummary:
    """Fill the cache in ``cache_path`` with the features of every image of ``index``, or finish one begun earlier.

    An image that cannot be decoded is recorded with the reason and the run goes on; ``retry_failed`` tries those again.
    ``root`` overrides the index's data root. Interrupted at any moment, the cache can be resumed.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        MissingDataError: the data root is not there.
        CacheMismatchError: ``cache_path`` holds features made with other settings.
        DiskSpaceError: the disk is too small for what is left to do.
    """
    start = time.monotonic()
    pictures = PictureSource(index=index, image_size=settings.image_size, views=settings.views, root=root)
    fingerprint = feature_fingerprint(settings, index)
    extractor = FeatureExtractor(settings=settings)
    with CacheWriter.open(
        cache_path,
        taps=list(extractor.specs.values()),
        agents=settings.agents.count,
        image_keys=view_keys(map(str, index.images.key), settings.views),
        images_per_frame=images_per_frame(index, settings),
        fingerprint=fingerprint,
        profile=settings.profile,
        shard_bytes=shard_bytes(settings),
    ) as writer:
        pending = writer.pending_shards(retry_failed)
        _check_disk(cache_path, writer.layout, pending)
        extractor.clock.restart()
        _fill(writer, pending, extractor, pictures)
        shares, elapsed = extractor.clock.shares(), extractor.clock.elapsed
    info = cache_info(cache_path)
    computed = sum(len(shard.rows) for shard in pending)
    if computed:
        log.info(
            "%.3g images a second; model %.1f %%, agents %.1f %%, waiting for decoding %.1f %% and writing %.1f %% of"
            " the time",
            computed / elapsed,
            *(100 * shares[activity] for activity in ACTIVITIES),
        )
    return ExtractSummary(
        cache=cache_path,
        fingerprint=fingerprint_digest(fingerprint),
        images=len(pictures),
        done=int(info["done"]),
        failed=int(info["failed"]),
        seconds=time.monotonic() - start,
        images_per_second=computed / elapsed,
        shares=shares,
    )


def _fill(writer: CacheWriter, pending: list[Shard], extractor: FeatureExtractor, pictures: PictureSource) -> None:
    """Compute and write the pending shards: decoding runs ahead of the model, writing behind it."""
    total, left = writer.layout.images, sum(len(shard.rows) for shard in pending)
    clock, batches = extractor.clock, _decoded(pictures, _batches(pending, extractor.batch_size))
    with (
        progress("Extracting features", total, "image", done=total - left) as bar,
        contextlib.closing(batches),
        WriteBehind() as behind,
    ):
        for shard in pending:
            rows = _ShardRows(writer.layout, shard)
            while not rows.full:
                with clock.during("decoding"):
                    chosen, images, failures = next(batches)
                rows.add(extractor(images, pictures.keys(chosen)), failures)
                behind.check()
                bar.update(len(chosen))
            with clock.during("writing"):
                behind.put(partial(writer.write_shard, shard, rows.features, rows.failures))
        with clock.during("writing"):
            behind.wait()


class _ShardRows:
    """The features of one shard, filled batch by batch."""

    def __init__(self, layout: CacheLayout, shard: Shard) -> None:
        rows = len(shard.rows)
        self.failures: dict[int, str] = {}
        self._filled, self._rows = 0, rows
        self._arrays = {
            name: np.empty((rows, *array.row_shape), np.uint8 if array.dtype == np.uint8 else np.float32)
            for name, array in layout.computed.items()
        }

    @property
    def full(self) -> bool:
        return self._filled == self._rows

    @property
    def features(self) -> ImageFeatures:
        return ImageFeatures(
            maps=self._under("features/"), agents=self._under("agents/"), geometry=self._arrays[GEOMETRY]
        )

    def add(self, features: ImageFeatures, failures: dict[int, str]) -> None:
        place = slice(self._filled, self._filled + len(features.geometry))
        for folder, parts in (("features", features.maps), ("agents", features.agents)):
            for name, values in parts.items():
                self._arrays[f"{folder}/{name}"][place] = values
        self._arrays[GEOMETRY][place] = features.geometry
        self._filled = place.stop
        self.failures.update(failures)

    def _under(self, folder: str) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(folder): values
            for name, values in self._arrays.items()
            if name.startswith(folder) and name != GEOMETRY
        }


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


def _check_disk(path: Path | str, layout: CacheLayout, pending: list[Shard]) -> None:
    needed, free = stored_bytes(layout, pending), open_store(path).free_bytes()
    if free is not None and needed > free:
        raise DiskSpaceError(
            f"The features need {needed / 1e9:.2f} GB more in {path}, the disk has {free / 1e9:.2f} GB free; "
            "free some, choose another disk, or keep fewer taps (extract.taps)"
        )

"""Stage one: computes the features of every image of an index and writes them to a cache, shard by shard.

After an interruption the same call resumes: committed shards are kept, and the others are computed in the same batches,
so the cache has the same bytes as after an uninterrupted run.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...cache.layout import CacheLayout, Shard
from ...cache.schema import TapSpec
from ...cache.stores import open_store
from ...cache.views import view_keys
from ...cache.writer import CacheWriter
from ...errors import DataError, DiskSpaceError
from ...fingerprint import fingerprint_digest
from ...progress import progress
from ..datasets.index import FrameIndex
from .agents import grid_tap
from .extractor import ACTIVITIES, FeatureExtractor, StageClock
from .fingerprint import feature_fingerprint
from .images import PictureSource
from .overlap import BatchExtractor, fill_shards
from .settings import AgentSettings, ExtractSettings

__all__ = [
    "CacheOpener",
    "ExtractSummary",
    "cache_opener",
    "check_disk",
    "extract_features",
    "fill_pending",
    "planned_layout",
    "require_space",
    "stored_bytes",
    "summarise",
]

log = logging.getLogger(__name__)

INDEX_ENTRY, INDEX_CHECKSUM = 16, 4  #: bytes of a Zarr shard index: one entry a slot, one checksum a file
POLL_SECONDS = 1.0  #: seconds between checks of shards claimed by other writers

CacheOpener = partial[CacheWriter]  #: opens the cache of a run; called with or without ``shared``


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """Summary of a run: number of images ``done`` and ``failed`` in the cache, and the ``seconds`` of this run.

    Each view of an image counts as an image. ``images_per_second`` excludes loading the model; ``shares`` are the
    fractions of that time spent in the model and the agents, and waiting for decoding and for writing.
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
    part: tuple[int, int] | None = None,
) -> ExtractSummary:
    """Writes the features of every image of ``index`` to the cache in ``cache_path``, or resumes an earlier run.

    An image that cannot be decoded is recorded with the reason and skipped; ``retry_failed`` tries those again.
    Interrupted at any moment, the cache can be resumed. With ``part`` (i, n), i from 1 to n, this process computes
    every n-th shard only and shares the cache with the other parts; the summary counts its own images.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        ConfigError: the settings are those of an export, or their ``agents`` name an unknown tap.
        BackendError: CUDA is requested and not available, or the GPU has too little memory for one image.
        MissingDataError: the data root is not there.
        DataError: the index has no images.
        CacheError: another writer uses the cache, or it cannot be written.
        CacheMismatchError: ``cache_path`` holds features made with other settings.
        DiskSpaceError: the disk has too little space for the pending shards.
    """
    start = time.monotonic()
    pictures = PictureSource.of(index, settings)
    opener = cache_opener(index, settings, cache_path)
    extractor = FeatureExtractor(settings=settings)
    with opener(taps=list(extractor.specs.values()), shared=part is not None) as writer:
        first, step = part or (1, 1)
        shards = list(writer.layout.shards())[first - 1 :: step]
        pending = writer.pending_shards(retry_failed, among=shards)
        check_disk(cache_path, writer.layout, pending)
        extractor.clock.restart()
        fill_pending(writer, shards, pending, extractor, pictures)
        return summarise(writer, shards, pending, extractor.clock, start=start)


def cache_opener(
    index: FrameIndex,
    settings: ExtractSettings,
    cache_path: Path | str,
    *,
    fingerprint: Mapping[str, Any] | None = None,
) -> CacheOpener:
    """Returns a picklable function that opens the cache of a run; call it with ``taps``.

    ``fingerprint`` replaces the one of ``settings``; it is that of the agents of several networks.

    Raises:
        ModelError: the model cannot be found or is incomplete.
        DataError: the index has no images.
    """
    return partial(
        _open_cache,
        cache_path,
        agents=None if settings.maps_only else settings.agents,
        image_keys=view_keys(map(str, index.images.key), settings.views),
        images_per_frame=images_per_frame(index, settings),
        fingerprint=feature_fingerprint(settings, index) if fingerprint is None else fingerprint,
        profile=settings.profile,
        shard_bytes=settings.shard_mb * 1_000_000,
        recipe={"dataset": index.dataset, "extract": settings.model_dump(mode="json", exclude={"caches"})},
        part=_part(settings),
    )


def _open_cache(
    path: Path | str, *, taps: Sequence[TapSpec], agents: AgentSettings | None, **facts: Any
) -> CacheWriter:
    specs = {tap.name: tap for tap in taps}
    count, grid = (agents.count, specs[grid_tap(agents, specs)]) if agents else (0, None)
    return CacheWriter.open(path, taps=taps, agents=count, grid=grid, **facts)


def _part(settings: ExtractSettings) -> str:
    return "features" if settings.maps_only else "agents" if settings.models else ""


def summarise(
    writer: CacheWriter,
    shards: Sequence[Shard],
    computed: Sequence[Shard],
    clock: StageClock,
    *,
    start: float,
    workers: int = 1,
) -> ExtractSummary:
    """Summarises a run over ``shards`` that began at ``start`` (``time.monotonic()``).

    ``computed``: the shards that were pending; ``clock``: the times, summed over all ``workers``.
    """
    elapsed = clock.elapsed
    rate = sum(len(shard.rows) for shard in computed) / elapsed
    shares = {activity: seconds / (elapsed * workers) for activity, seconds in clock.seconds.items()}
    done, failed = writer.tally(shards)
    if computed:
        log.info(
            "%.3g images a second; model %.1f %%, agents %.1f %%, waiting for decoding %.1f %% and writing %.1f %% of"
            " the time",
            rate,
            *(100 * shares[activity] for activity in ACTIVITIES),
        )
    return ExtractSummary(
        cache=writer.location,
        fingerprint=fingerprint_digest(writer.layout.fingerprint),
        images=sum(len(shard.rows) for shard in shards),
        done=done,
        failed=failed,
        seconds=time.monotonic() - start,
        images_per_second=rate,
        shares=shares,
    )


def fill_pending(
    writer: CacheWriter, shards: list[Shard], pending: list[Shard], extractor: BatchExtractor, pictures: PictureSource
) -> None:
    """Fills the pending ones of ``shards``; those claimed by other writers are checked again at the end."""
    total, left = (sum(len(shard.rows) for shard in part) for part in (shards, pending))
    with progress("Extracting features", total, "image", done=total - left) as bar:
        while pending:
            claimed = fill_shards(writer, pending, extractor, pictures, bar.update)
            pending = writer.pending_shards(among=claimed)
            bar.update(sum(len(shard.rows) for shard in claimed) - sum(len(shard.rows) for shard in pending))
            if pending:
                log.info("Waiting for %d shards of other writers", len(pending))
                time.sleep(POLL_SECONDS)


def check_disk(path: Path | str, layout: CacheLayout, pending: list[Shard]) -> None:
    """Raises ``DiskSpaceError`` if the disk has too little space for the pending shards."""
    require_space(
        path,
        stored_bytes(layout, pending),
        "features",
        "free some, choose another disk, or keep fewer taps (extract.taps)",
    )


def require_space(path: Path | str, needed: int, what: str, remedy: str) -> None:
    """Raises ``DiskSpaceError`` if the disk of ``path`` has less than ``needed`` bytes free."""
    free = open_store(path).free_bytes()
    if free is not None and needed > free:
        raise DiskSpaceError(
            f"The {what} need {needed / 1e9:.2f} GB more in {path}, the disk has {free / 1e9:.2f} GB free; {remedy}"
        )


def images_per_frame(index: FrameIndex, settings: ExtractSettings) -> int:
    """Returns the rows that stay in one shard: those of a frame, or of an image if frames vary in size.

    Raises:
        DataError: the index has no images.
    """
    if not len(index.images.key):
        raise DataError(
            f"The index of {index.dataset} has no images, so there are no features to extract: train on it with"
            " fusion.variant=3d-only, or prepare it with cameras if the data set has them"
        )
    counts = np.unique(np.bincount(index.images.frame, minlength=len(index.frames.key)))
    return len(settings.views) * (int(counts[0]) if len(counts) == 1 else 1)


def planned_layout(index: FrameIndex, settings: ExtractSettings, specs: Mapping[str, TapSpec]) -> CacheLayout:
    """Returns the layout of a new cache of ``index`` (several networks: of the agents' part), without fingerprint.

    Raises:
        DataError: the index has no images.
        ConfigError: the settings of the agents name a tap that is not in ``specs``.
    """
    taps, together = list(specs.values()), images_per_frame(index, settings)
    agents = 0 if settings.maps_only else settings.agents.count
    keys = tuple(view_keys(map(str, index.images.key), settings.views))
    return CacheLayout(
        taps=tuple(taps),
        agents=agents,
        image_keys=keys,
        images_per_frame=together,
        images_per_shard=CacheLayout.shard_images(taps, agents, len(keys), together, settings.shard_mb * 1_000_000),
        fingerprint={},
        profile=settings.profile,
        grid=None if settings.maps_only else specs[grid_tap(settings.agents, specs)],
        part=_part(settings),
    )


def stored_bytes(layout: CacheLayout, shards: Iterable[Shard]) -> int:
    """Returns the exact size of the files of ``shards``: rows, and a shard index in each file."""
    index = len(layout.arrays) * (INDEX_ENTRY * layout.images_per_shard + INDEX_CHECKSUM)
    return sum(len(shard.rows) * layout.bytes_per_image + index for shard in shards)

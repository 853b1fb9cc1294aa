"""Plans the output of a run: the assignment of images to shards, and the size in bytes."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...cache.layout import CacheLayout, Shard
from ...cache.schema import TapSpec
from ...cache.views import view_keys
from ...errors import DataError
from ..datasets.index import FrameIndex
from .agents import grid_tap
from .settings import ExtractSettings

__all__ = ["extraction_recipe", "images_per_frame", "planned_layout", "shard_bytes", "stored_bytes"]

INDEX_ENTRY, INDEX_CHECKSUM = 16, 4  #: bytes of a Zarr shard index: one entry a slot, one checksum a file


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
    return len(settings.views) * (int(counts[0]) if len(counts) == 1 and counts[0] > 0 else 1)


def extraction_recipe(index: FrameIndex, settings: ExtractSettings) -> dict[str, Any]:
    """Returns the settings of the extraction, which a cache records."""
    return {"dataset": index.dataset, "extract": settings.model_dump(mode="json", exclude={"caches"})}


def shard_bytes(settings: ExtractSettings) -> int:
    """Returns the shard size in bytes."""
    return settings.shard_mb * 1_000_000


def planned_layout(index: FrameIndex, settings: ExtractSettings, specs: Mapping[str, TapSpec]) -> CacheLayout:
    """Returns the layout of a new cache of ``index``, or of its agents with several networks; writes nothing."""
    taps, together = list(specs.values()), images_per_frame(index, settings)
    part = "features" if settings.maps_only else "agents" if settings.models else ""
    agents = 0 if settings.maps_only else settings.agents.count
    keys = tuple(view_keys(map(str, index.images.key), settings.views))
    return CacheLayout(
        taps=tuple(taps),
        agents=agents,
        image_keys=keys,
        images_per_frame=together,
        images_per_shard=CacheLayout.shard_images(taps, agents, len(keys), together, shard_bytes(settings)),
        fingerprint={},
        profile=settings.profile,
        grid=None if settings.maps_only else specs[grid_tap(settings.agents, specs)],
        part=part,
    )


def stored_bytes(layout: CacheLayout, shards: Iterable[Shard]) -> int:
    """Returns the exact size of the files of ``shards``: rows, and a shard index in each file."""
    index = len(layout.arrays) * (INDEX_ENTRY * layout.images_per_shard + INDEX_CHECKSUM)
    return sum(len(shard.rows) * layout.bytes_per_image + index for shard in shards)

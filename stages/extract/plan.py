"""What a run is going to write: how images fall into shards, and how many bytes that takes."""

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
    """Rows that belong together in a shard: the views of a frame's images, or of one where frames differ in number.

    Raises:
        DataError: the index has no image.
    """
    if not len(index.images.key):
        raise DataError(
            f"The index of {index.dataset} has no images, so there are no features to extract: train on it with"
            " fusion.variant=3d-only, or prepare it with cameras if the data set has them"
        )
    counts = np.unique(np.bincount(index.images.frame, minlength=len(index.frames.key)))
    return len(settings.views) * (int(counts[0]) if len(counts) == 1 and counts[0] > 0 else 1)


def extraction_recipe(index: FrameIndex, settings: ExtractSettings) -> dict[str, Any]:
    """How features are asked for, as a cache keeps it to be repaired by."""
    return {"dataset": index.dataset, "extract": settings.model_dump(mode="json", exclude={"caches"})}


def shard_bytes(settings: ExtractSettings) -> int:
    """The shard size of the settings in bytes."""
    return settings.shard_mb * 1_000_000


def planned_layout(index: FrameIndex, settings: ExtractSettings, specs: Mapping[str, TapSpec]) -> CacheLayout:
    """Return the layout a new cache of ``index`` will have, without writing anything."""
    taps, agents, together = list(specs.values()), settings.agents.count, images_per_frame(index, settings)
    keys = tuple(view_keys(map(str, index.images.key), settings.views))
    return CacheLayout(
        taps=tuple(taps),
        agents=agents,
        image_keys=keys,
        images_per_frame=together,
        images_per_shard=CacheLayout.shard_images(taps, agents, len(keys), together, shard_bytes(settings)),
        fingerprint={},
        profile=settings.profile,
        grid=specs[grid_tap(settings.agents, specs)],
    )


def stored_bytes(layout: CacheLayout, shards: Iterable[Shard]) -> int:
    """Exact size of the files of ``shards``: their rows, and a shard index in each array's file."""
    index = len(layout.arrays) * (INDEX_ENTRY * layout.images_per_shard + INDEX_CHECKSUM)
    return sum(len(shard.rows) * layout.bytes_per_image + index for shard in shards)

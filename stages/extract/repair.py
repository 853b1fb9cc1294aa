"""Repairs a cache: recomputes the images with damaged features, in their original batches."""

from dataclasses import dataclass, replace
from pathlib import Path

from ...cache.layout import CacheLayout, Shard
from ...cache.repair import CacheRepair
from ...cache.stored import StoredRows
from ...cache.verify import verify_cache
from ...progress import track
from ..datasets.index import FrameIndex
from .extractor import FeatureExtractor
from .fingerprint import feature_fingerprint
from .images import PictureSource
from .models import settings_model
from .networks import tap_specs
from .plan import extraction_recipe, planned_layout
from .settings import ExtractSettings

__all__ = ["RepairSummary", "repair_features"]


@dataclass(frozen=True, kw_only=True)
class RepairSummary:
    """Summary of a repair. ``ok``: no damage is left; ``repaired``, ``failed``: numbers of images.

    ``metadata``: the files that were rewritten.
    """

    ok: bool
    repaired: int
    metadata: list[str]
    failed: int


def repair_features(
    index: FrameIndex, settings: ExtractSettings, cache_path: Path | str, *, root: Path | None = None
) -> RepairSummary:
    """Repairs the cache in ``cache_path`` of ``index`` and ``settings``; intact rows are kept.

    On a machine with the same arithmetic the result is byte for byte what it was before the damage. An image that
    cannot be computed is recorded as failed.

    Raises:
        CacheError: there is no cache, or a writer is at work on it.
        CacheMismatchError: the cache was made with other settings, of other images or by another model.
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        MissingDataError: the data root is not there.
    """
    planned = planned_layout(index, settings, tap_specs(settings_model(settings), settings))
    wanted = replace(planned, fingerprint=feature_fingerprint(settings, index))
    repaired = failed = 0
    with CacheRepair.open(cache_path, wanted=wanted, recipe=extraction_recipe(index, settings)) as repair:
        if repair.damaged:
            pictures = PictureSource.of(index, settings, root)
            extractor = FeatureExtractor(settings=settings)
            index_rows = _index_rows(repair.layout, planned)
        for shard, rows in track(repair.damaged.items(), "Repairing", len(repair.damaged), "shard"):
            commit = repair.rewrite(shard, _computed(shard, rows, extractor, pictures, index_rows))
            lost = sum(row in commit.failed for row in rows)
            failed += lost
            repaired += len(rows) - lost
    ok = bool(verify_cache(cache_path, quick=True)["ok"])
    return RepairSummary(ok=ok, repaired=repaired, metadata=repair.metadata, failed=failed)


def _index_rows(layout: CacheLayout, planned: CacheLayout) -> list[int]:
    """Returns the index row of each row of the cache; an export may hold only some images of the index."""
    rows = {key: row for row, key in enumerate(planned.image_keys)}
    return [rows[key] for key in layout.image_keys]


def _computed(
    shard: Shard, rows: list[int], extractor: FeatureExtractor, pictures: PictureSource, index_rows: list[int]
) -> StoredRows:
    """Computes the features of ``rows`` of a shard, in the batches of an ordinary run."""
    parts: list[StoredRows] = []
    for first in range(shard.first, shard.last, extractor.batch_size):
        batch = range(first, min(first + extractor.batch_size, shard.last))
        chosen = [row for row in rows if row in batch]
        if chosen:
            asked = [index_rows[row] for row in batch]
            images, faults = pictures.read(asked)
            found = extractor(images, pictures.keys(asked)).select([row - first for row in chosen], chosen)
            failures = {row: faults[index_rows[row]] for row in chosen if index_rows[row] in faults}
            parts.append(found.with_failures(failures))
    return StoredRows.join(parts)

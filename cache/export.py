"""Exports some taps or images of a cache to a new cache; rows are copied, not computed.

The export has the fingerprint and the format of its source. Images do not depend on each other, so an export of some
images can be used wherever the whole cache can. Fewer taps are a different setting, because the agents were grouped by
all taps: the fingerprint then lists the exported taps and, as ``exported_from``, the digest of the source, and only a
config with the same values accepts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError, nearest
from ..fingerprint import fingerprint_digest
from ..progress import track
from .arrays import DamagedRowError, StoredArray
from .commits import COMMITTED, FAILED, CommitLog
from .layout import CacheLayout
from .metadata import load_layout
from .recipe import load_recipe
from .stored import StoredRows, read_rows
from .stores import Store, open_store
from .verify import refuse_damaged_metadata
from .writer import CacheWriter

__all__ = ["chosen_taps", "export_cache", "export_fingerprint", "wanted_rows"]


@dataclass(frozen=True, kw_only=True)
class _Source:
    store: Store
    layout: CacheLayout
    log: CommitLog


def export_cache(
    path: Path | str, out: Path | str, *, taps: Sequence[str] | None = None, images: Sequence[str] | None = None
) -> dict[str, Any]:
    """Copies the committed rows of a cache, or of some ``taps`` and ``images`` (keys), to a new cache in ``out``.

    The same call resumes after an interruption. Returns a JSON-ready dictionary: ``cache`` (the new one),
    ``fingerprint``, ``images`` (in it), ``left_out`` (wanted images that are not committed), ``taps``, ``bytes``.

    Raises:
        CacheError: there is no cache in ``path``, a tap or an image is not in it, or a row is damaged.
        CacheMismatchError: ``out`` holds another cache.
        DiskSpaceError: the disk is full.
    """
    store = open_store(path)
    layout = load_layout(store)
    refuse_damaged_metadata(store, layout)
    source = _Source(store=store, layout=layout, log=CommitLog(store=store, layout=layout))
    chosen = chosen_taps(layout, taps)
    wanted = wanted_rows(layout, images, store.describe())
    rows = wanted[np.isin(source.log.states[wanted], (COMMITTED, FAILED))]
    if not len(rows):
        raise CacheError(f"None of the images that are asked for is committed in {store.describe()}")
    fingerprint = export_fingerprint(layout, chosen)
    recipe = load_recipe(store) or {}
    with CacheWriter.open(
        out,
        taps=[tap for tap in layout.taps if tap.name in chosen],
        agents=layout.agents,
        image_keys=[layout.image_keys[row] for row in rows],
        images_per_frame=_images_per_frame(layout, rows),
        fingerprint=fingerprint,
        profile=layout.profile,
        shard_bytes=layout.images_per_shard * layout.shard_bytes_per_image,
        recipe={**recipe, "exported_from": fingerprint_digest(layout.fingerprint)},
        grid=layout.grid,
        part=layout.part,
    ) as writer:
        arrays = {
            name: StoredArray(store=store, array=layout.arrays[name], layout=layout) for name in writer.layout.arrays
        }
        pending = writer.pending_shards()
        for shard in track(pending, "Exporting", len(pending), "shard"):
            theirs = [int(row) for row in rows[shard.first : shard.last]]
            writer.write_rows(shard, _read(source, arrays, theirs).renumbered(shard.rows))
        stored = sum(array.row_bytes for array in writer.layout.arrays.values()) * len(rows)
    return {
        "cache": str(out),
        "fingerprint": fingerprint_digest(fingerprint),
        "images": len(rows),
        "left_out": len(wanted) - len(rows),
        "taps": chosen,
        "bytes": stored,
    }


def chosen_taps(layout: CacheLayout, taps: Sequence[str] | None) -> list[str]:
    """Returns the names of ``taps`` in the order of the cache; None stands for all.

    Raises:
        CacheError: a tap is not in the cache.
    """
    names = [tap.name for tap in layout.taps]
    for tap in taps or ():
        if tap not in names:
            raise CacheError(f"The cache has no tap '{tap}': {nearest(tap, names)}")
    return [name for name in names if taps is None or name in taps]


def wanted_rows(layout: CacheLayout, images: Sequence[str] | None, where: str) -> np.ndarray:
    """Returns the rows of ``images`` (keys; None stands for all), in the order of the cache, int64 [images].

    Raises:
        CacheError: an image is not in the cache, which is called ``where`` in the message.
    """
    if images is None:
        return np.arange(layout.images)
    places = {key: row for row, key in enumerate(layout.image_keys)}
    if strange := [key for key in images if key not in places]:
        raise CacheError(
            f"{len(strange)} of the images that are asked for are not in {where}, such as '{strange[0]}'; "
            "xd3d cache info says what it is made of"
        )
    return np.array(sorted({places[key] for key in images}), np.int64)


def _images_per_frame(layout: CacheLayout, rows: np.ndarray) -> int:
    """Returns that of the cache if whole frames were chosen, else 1."""
    together = layout.images_per_frame
    if len(rows) % together:
        return 1
    frames = rows.reshape(-1, together)
    whole = (frames[:, 0] % together == 0).all() and (frames - frames[:, :1] == np.arange(together)).all()
    return together if whole else 1


def export_fingerprint(layout: CacheLayout, taps: Sequence[str]) -> dict[str, Any]:
    """Returns the fingerprint of the cache with some ``taps`` alone; with all taps it is that of the cache."""
    dropped = {tap.name for tap in layout.taps} - set(taps)
    if not dropped:
        return dict(layout.fingerprint)
    fields = {**layout.fingerprint, "taps": list(taps)}
    grouped = any(f"agents/{tap}" in layout.arrays for tap in dropped)
    if grouped and "exported_from" not in fields:
        fields["exported_from"] = fingerprint_digest(layout.fingerprint)
    return fields


def _read(source: _Source, arrays: dict[str, StoredArray], rows: list[int]) -> StoredRows:
    try:
        return read_rows(source.log, arrays, rows)
    except DamagedRowError as error:
        where = source.store.describe()
        raise CacheError(
            f"Image '{source.layout.image_keys[error.row]}' (row {error.row}) of {where} is damaged: {error.reason}; "
            f"repair it first with: xd3d cache repair {where}"
        ) from error

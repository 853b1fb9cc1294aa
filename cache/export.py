"""Exports some taps or images of a cache to a new cache; rows are copied, not computed.

The export has the fingerprint and the format of its source. Images do not depend on each other, so an export of some
images can be used wherever the whole cache can. Fewer taps are a different setting, because the agents were grouped by
all taps: the fingerprint then lists the exported taps and, as ``exported_from``, the digest of the source, and only a
config with the same values accepts it.

A ``Selection`` is a part of a cache; no rows are copied. The files of the arrays are those of the cache, and metadata
and commit records are made for the taps that are kept. Images are chosen by whole shards, so all images keep their
rows, and those of the other shards are uncommitted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..errors import CacheError, nearest
from ..fingerprint import fingerprint_digest
from ..progress import track
from .arrays import StoredArray
from .commits import COMMITTED, FAILED, Commit, CommitLog
from .layout import CacheLayout
from .metadata import KEYS, load_layout, manifest_checksum, metadata_files
from .recipe import RECIPE, encode_recipe, load_recipe
from .stored import read_rows
from .stores import open_store
from .verify import refuse_damaged_metadata
from .writer import CacheWriter

__all__ = ["Selection", "export_cache"]


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
    log = CommitLog(store=store, layout=layout)
    chosen = Selection.of(layout, taps=taps, images=images, where=store.describe())
    rows = chosen.rows[np.isin(log.states[chosen.rows], (COMMITTED, FAILED))]
    if not len(rows):
        raise CacheError(f"None of the images that are asked for is committed in {store.describe()}")
    recipe = load_recipe(store) or {}
    with CacheWriter.open(
        out,
        taps=chosen.layout.taps,
        agents=layout.agents,
        image_keys=[layout.image_keys[row] for row in rows],
        images_per_frame=_images_per_frame(layout, rows),
        fingerprint=chosen.layout.fingerprint,
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
            writer.write_rows(shard, read_rows(log, arrays, theirs).renumbered(shard.rows))
        stored = sum(array.row_bytes for array in writer.layout.arrays.values()) * len(rows)
    return {
        "cache": str(out),
        "fingerprint": fingerprint_digest(chosen.layout.fingerprint),
        "images": len(rows),
        "left_out": len(chosen.rows) - len(rows),
        "taps": [tap.name for tap in chosen.layout.taps],
        "bytes": stored,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The chosen part of the cache with layout ``source``: its ``layout``, and the ``rows`` that were asked for."""

    source: CacheLayout
    layout: CacheLayout
    rows: Int64[np.ndarray, "rows"]

    @classmethod
    def of(
        cls,
        source: CacheLayout,
        *,
        taps: Sequence[str] | None = None,
        images: Sequence[str] | None = None,
        where: str = "the cache",
    ) -> "Selection":
        """Chooses ``taps`` and ``images`` (keys) of a cache that messages call ``where``; None stands for all.

        Raises:
            CacheError: a tap or an image is not in the cache.
        """
        names = _chosen_taps(source, taps)
        kept = tuple(tap for tap in source.taps if tap.name in names)
        fingerprint = _export_fingerprint(source, names)
        layout = source if kept == source.taps else replace(source, taps=kept, fingerprint=fingerprint)
        return cls(source=source, layout=layout, rows=_wanted_rows(source, images, where))

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards that hold the rows."""
        return [int(index) for index in np.unique(self.rows // self.layout.images_per_shard)]

    @cached_property
    def manifest(self) -> str:
        """Checksum of the manifest of the selection."""
        return manifest_checksum(self.layout)

    def record(self, commit: Commit, plain: Callable[[str], str] = str) -> bytes:
        """Returns the commit record of a shard of the selection, made from that of the cache.

        ``plain`` is applied to the reasons of failures.
        """
        names = self.layout.arrays
        return replace(
            commit,
            manifest=self.manifest,
            sizes={name: commit.sizes[name] for name in names},
            crc32c={name: commit.crc32c[name] for name in names},
            clamped={name: rows for name, rows in commit.clamped.items() if name in names},
            failed={row: plain(reason) for row, reason in commit.failed.items()},
        ).encode()

    def metadata(self, recipe: Mapping[str, Any] | None) -> dict[str, bytes]:
        """Returns the metadata files by name, the manifest last; ``recipe`` is that of the cache."""
        files: dict[str, bytes] = {}
        if recipe is not None:
            exported = {"exported_from": fingerprint_digest(self.source.fingerprint)}
            files[RECIPE] = encode_recipe({**recipe, **({} if self.layout is self.source else exported)})
        return {**files, **metadata_files(self.layout)}


def _chosen_taps(layout: CacheLayout, taps: Sequence[str] | None) -> list[str]:
    """Returns the names of ``taps`` in the order of the cache; None stands for all.

    Raises:
        CacheError: a tap is not in the cache.
    """
    names = [tap.name for tap in layout.taps]
    for tap in taps or ():
        if tap not in names:
            raise CacheError(f"The cache has no tap '{tap}': {nearest(tap, names)}")
    return [name for name in names if taps is None or name in taps]


def _wanted_rows(layout: CacheLayout, images: Sequence[str] | None, where: str) -> np.ndarray:
    """Returns the rows of ``images`` (keys; None stands for all), in the order of the cache, int64 [images].

    Raises:
        CacheError: an image is not in the cache, which is called ``where`` in the message.
    """
    if images is None:
        return np.arange(layout.images)
    row_of_key = {key: row for row, key in enumerate(layout.image_keys)}
    if strange := [key for key in images if key not in row_of_key]:
        raise CacheError(
            f"{len(strange)} of the images that are asked for are not in {where}, such as '{strange[0]}'; "
            f"its keys are in {KEYS}"
        )
    return np.array(sorted({row_of_key[key] for key in images}), np.int64)


def _images_per_frame(layout: CacheLayout, rows: np.ndarray) -> int:
    """Returns that of the cache if whole frames were chosen, else 1."""
    together = layout.images_per_frame
    if len(rows) % together:
        return 1
    frames = rows.reshape(-1, together)
    whole = (frames[:, 0] % together == 0).all() and (frames - frames[:, :1] == np.arange(together)).all()
    return together if whole else 1


def _export_fingerprint(layout: CacheLayout, taps: Sequence[str]) -> dict[str, Any]:
    """Returns the fingerprint of the cache with some ``taps`` alone; with all taps it is that of the cache."""
    dropped = {tap.name for tap in layout.taps} - set(taps)
    if not dropped:
        return dict(layout.fingerprint)
    fields = {**layout.fingerprint, "taps": list(taps)}
    grouped = any(f"agents/{tap}" in layout.arrays for tap in dropped)
    if grouped and "exported_from" not in fields:
        fields["exported_from"] = fingerprint_digest(layout.fingerprint)
    return fields

"""Some taps and shards of a cache as the files of a smaller cache, without copying rows.

The files of the arrays are those of the cache; metadata and commit records are made for the taps that are kept. Images
are chosen by whole shards, so all images keep their rows, and those of the other shards are uncommitted. An export
(``export.py``) copies rows instead and holds exactly the chosen images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..fingerprint import fingerprint_digest
from .commits import Commit
from .export import chosen_taps, export_fingerprint, wanted_rows
from .layout import CacheLayout
from .metadata import manifest_checksum, metadata_files
from .recipe import RECIPE, encode_recipe

__all__ = ["Selection"]


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
        names = chosen_taps(source, taps)
        kept = tuple(tap for tap in source.taps if tap.name in names)
        fingerprint = export_fingerprint(source, names)
        layout = source if kept == source.taps else replace(source, taps=kept, fingerprint=fingerprint)
        return cls(source=source, layout=layout, rows=wanted_rows(source, images, where))

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards that hold the rows."""
        return [int(index) for index in np.unique(self.rows // self.layout.images_per_shard)]

    @cached_property
    def manifest(self) -> str:
        """Checksum of the manifest of the selection."""
        return manifest_checksum(self.layout)

    def record(self, commit: Commit, plain: Callable[[str], str] = str) -> bytes:
        """Returns the commit record of a shard of the selection, made of that of the cache.

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

"""Repairs a damaged cache: rewrites damaged metadata from the layout, and damaged rows from recomputed features.

Damage is detected by checksums, and intact rows are kept; stage one recomputes the others. Rows without a valid commit
record count as damaged.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import CacheError, CacheMismatchError, UnfinishedUpgradeError
from ..fingerprint import canonical_json, differences
from .arrays import StoredArray
from .commits import FINISHED, Commit, CommitLog, encode_finished, list_records, lost_records
from .layout import CacheLayout, Shard
from .metadata import MANIFEST, load_layout, manifest_checksum, metadata_files
from .recipe import RECIPE, encode_recipe, load_recipe
from .stored import StoredRows, read_rows
from .stores import Store, open_store
from .verify import metadata_faults, row_faults
from .writer import CacheWriter, write_metadata

__all__ = ["CacheRepair"]


class CacheRepair:
    """A cache under repair, locked exclusively; use ``CacheRepair.open`` and a ``with`` block.

    ``layout``: that of the cache; ``metadata``: the files that were rewritten; ``damaged``: shard -> image rows whose
    features must be computed again.
    """

    def __init__(self, *, store: Store, writer: CacheWriter, log: CommitLog, metadata: list[str]) -> None:
        self.layout = writer.layout
        self.metadata = metadata
        self.damaged = _damaged_rows(store, log)
        self._writer = writer
        self._log = log
        self._arrays = {
            name: StoredArray(store=store, array=array, layout=self.layout)
            for name, array in self.layout.arrays.items()
        }

    @classmethod
    def open(cls, path: Path | str, *, wanted: CacheLayout, recipe: Mapping[str, Any]) -> "CacheRepair":
        """Locks the cache in ``path``, repairs its metadata and finds damaged rows.

        ``wanted``: the layout of the cache that stage one would create now; ``recipe``: the settings of the extraction.

        Raises:
            UnfinishedUpgradeError: the cache is between two formats.
            CacheError: there is no cache, or a writer is at work on it.
            CacheMismatchError: the cache was made with other settings than ``wanted`` says.
        """
        store = open_store(path)
        wanted = replace(wanted, fingerprint=json.loads(canonical_json(dict(wanted.fingerprint))))
        layout = _layout_of(store, wanted)
        with store.faults("repairing it"):
            lock = store.lock(shared=False)
            try:
                faults = metadata_faults(store, layout)
                files = {name: data for name, data in metadata_files(layout).items() if name in faults}
                if RECIPE in faults or not store.exists(RECIPE):
                    files = {RECIPE: encode_recipe(load_recipe(store) or recipe), **files}
                if FINISHED in faults:
                    files = {FINISHED: encode_finished(layout), **files}
                write_metadata(store, files, lock.owner)
                log = CommitLog(store=store, layout=layout)
                writer = CacheWriter(store=store, layout=layout, lock=lock)
                return cls(store=store, writer=writer, log=log, metadata=list(files))
            except BaseException:
                lock.release()
                raise

    def __enter__(self) -> "CacheRepair":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def rewrite(self, shard: Shard, computed: StoredRows) -> Commit:
        """Rewrites ``shard`` with its intact rows and the ``computed`` ones; returns the new commit record.

        Raises:
            CacheError: the rows do not fit, or the cache cannot be written.
            DiskSpaceError: the disk is full.
        """
        damaged = set(self.damaged[shard])
        intact = [row for row in shard.rows if row not in damaged]
        return self._writer.write_rows(shard, StoredRows.join([read_rows(self._log, self._arrays, intact), computed]))


def _layout_of(store: Store, wanted: CacheLayout) -> CacheLayout:
    """Returns the layout in the manifest, or ``wanted`` if the manifest is damaged and the commit records match it."""
    if not store.exists(MANIFEST) and not list_records(store):
        raise CacheError(f"There is no feature cache in {store.describe()}; make one with: xd3d extract-features")
    try:
        layout = load_layout(store)
    except UnfinishedUpgradeError:
        raise
    except CacheError as error:
        return _layout_of_records(store, wanted, error)
    if lines := differences(wanted.fingerprint, layout.fingerprint):
        raise CacheMismatchError(
            f"The cache in {store.describe()} was made with other settings than are given:\n  "
            + "\n  ".join(lines)
            + "\nName the settings it was made with (--dataset, --config, --set), or prepare its data set again"
        )
    return layout


def _layout_of_records(store: Store, wanted: CacheLayout, error: CacheError) -> CacheLayout:
    """Returns ``wanted`` with the format and the shard size of the commit records, if they match it."""
    manifests = set()
    for index in list_records(store):
        with contextlib.suppress(CacheError):
            commit = Commit.read(store, index)
            manifests.add(commit.manifest)
            size = commit.first // commit.shard if commit.shard else commit.last
            if 0 < size <= wanted.images and size % wanted.images_per_frame == 0:
                for grid in (wanted.grid, None):
                    layout = replace(wanted, images_per_shard=size, grid=grid)
                    if manifest_checksum(layout) == commit.manifest:
                        return layout
    if not manifests:
        return wanted
    raise CacheMismatchError(
        f"The manifest of {store.describe()} cannot be read ({error}), and its commit records belong to a cache"
        " of other settings than are given; name those it was made with (--dataset, --config, --set)"
    )


def _damaged_rows(store: Store, log: CommitLog) -> dict[Shard, list[int]]:
    layout = log.layout
    rows = {row for index in [*log.damaged, *lost_records(store, log)] for row in layout.shard(index).rows}
    rows |= {fault.row for fault in row_faults(store, log) if fault.row is not None}
    shards = sorted({row // layout.images_per_shard for row in rows})
    return {shard: [row for row in shard.rows if row in rows] for shard in (layout.shard(index) for index in shards)}

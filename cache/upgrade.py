"""Upgrades a cache from format 1 to format 2: writes memberships shard by shard, then switches the format.

Until the switch the cache is a complete cache of format 1: the files of the new arrays do not exist in format 1, and
the commit records of format 2 are stored in ``upgrade/``. The switch writes a manifest that blocks readers and writers,
replaces the commit records, and writes the manifest of format 2. The same call resumes after a kill at any moment:
before the switch with the pending shards, during the switch with the records.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from jaxtyping import UInt8, UInt16
from numpy import ndarray

from ..errors import CacheError
from .arrays import check_agent_indices
from .commits import Commit, CommitLog, list_records
from .layout import DONE, UPGRADE, CacheLayout, Shard
from .metadata import (
    MANIFEST,
    load_layout,
    load_unfinished,
    manifest_checksum,
    metadata_files,
    unfinished_manifest,
)
from .schema import ASSIGNMENT, MEMBERSHIP, MEMBERSHIPS, TapSpec
from .stored import StoredRows
from .stores import Lock, Store, exclusive, open_store
from .verify import refuse_damaged_metadata
from .writer import mark_finished, stage_arrays, write_files

__all__ = ["CacheUpgrade", "finish_upgrade"]


class CacheUpgrade:
    """A cache of format 1 during its upgrade, locked exclusively in a ``with`` block of ``CacheUpgrade.open``.

    ``layout``: the layout in format 2; ``pending``: the committed shards without memberships.
    """

    def __init__(self, *, store: Store, layout: CacheLayout, lock: Lock, log: CommitLog) -> None:
        self.layout = layout
        self._store = store
        self._lock = lock
        self._log = log
        self._manifest = manifest_checksum(layout)
        self.pending = self._without_memberships()

    @classmethod
    @contextmanager
    def open(cls, path: Path | str, *, grid: TapSpec) -> Iterator["CacheUpgrade"]:
        """Locks the cache in ``path``; ``grid`` is the tap whose grid its agents were computed on.

        Raises:
            CacheError: there is no cache of format 1, something in it is damaged, or a writer uses it.
        """
        store = open_store(path)
        with store.translate_errors("upgrading it"):
            lock = store.lock(shared=False)
        try:
            with store.translate_errors("upgrading it"):
                layout = load_layout(store)
                if layout.grid is not None:
                    raise CacheError(f"The cache {store.describe()} has format {layout.format} already")
                refuse_damaged_metadata(store, layout)
                log = CommitLog(store=store, layout=layout)
                where = shlex.quote(store.describe())
                _refuse_damaged_records(log, f"repair them first with: xd3d cache repair {where}")
                store.remove_partial(host="")
                upgrade = cls(store=store, layout=replace(layout, grid=grid), lock=lock, log=log)
            yield upgrade
        finally:
            lock.release()

    def add(
        self,
        shard: Shard,
        assignment: UInt8[ndarray, "images 4 h w"] | UInt16[ndarray, "images 4 h w"],
        membership: UInt8[ndarray, "images 4 h w"],
    ) -> int:
        """Writes the memberships of a pending ``shard``, one row per image; returns their size in bytes.

        Rows of failed images become zeros. Readers do not see them before the switch.

        Raises:
            CacheError: an index is out of range, or the cache cannot be written.
            DiskSpaceError: the disk is full.
        """
        check_agent_indices(assignment, self.layout.agents)
        failed = {row: self._log.failed[row] for row in shard.rows if row in self._log.failed}
        record = f"{UPGRADE}/{shard.index}.json"
        rows = StoredRows(rows=shard.rows, arrays={ASSIGNMENT: assignment, MEMBERSHIP: membership}, failed=failed)
        stored = ((array := self.layout.arrays[name], rows.values(array)) for name in MEMBERSHIPS)
        with self._store.translate_errors(f"upgrading shard {shard.index}"):
            stage = self._store.stage(self._lock.owner)
            try:
                self._store.delete(record)  # a record must never exist beside other data
                sizes, checksums = stage_arrays(stage, shard, stored, self.layout.images_per_shard)
                stage.publish()
                commit = self._record(shard, sizes, checksums)
                stage.write(record, lambda file: file.write(commit.encode()))
                stage.publish()
            finally:
                stage.discard()
        self.pending.remove(shard)
        return sum(sizes.values())

    def switch(self) -> None:
        """Switches the cache to format 2.

        Raises:
            CacheError: shards are pending, or the cache cannot be written.
        """
        if self.pending:
            raise CacheError(f"{len(self.pending)} shards of {self._store.describe()} have no memberships yet")
        with self._store.translate_errors("switching it over"):
            files = metadata_files(self.layout)
            arrays = {key: files[key] for key in (f"{name}/zarr.json" for name in MEMBERSHIPS)}
            write_files(self._store, {**arrays, MANIFEST: unfinished_manifest(self.layout)}, self._lock.owner)
            _exchange_records(self._store, self.layout, self._lock.owner)

    def _without_memberships(self) -> list[Shard]:
        """Returns committed shards without a matching staged record; deletes staged records of other shards."""
        shards = [self.layout.shard(index) for index in sorted(self._log.sizes)]
        staged = list_records(self._store, UPGRADE)
        for index in staged.keys() - self._log.sizes.keys():
            self._store.delete(f"{UPGRADE}/{index}.json")
        files = {name: self.layout.arrays[name] for name in MEMBERSHIPS}
        sizes = self._store.sizes(array.shard_file(index) for array in files.values() for index in staged)
        found = {index: {name: sizes.get(array.shard_file(index)) for name, array in files.items()} for index in staged}
        stand = self._store.map(
            lambda shard: shard.index in staged and self._is_staged(shard, found[shard.index]), shards
        )
        return [shard for shard, done in zip(shards, stand, strict=True) if not done]

    def _is_staged(self, shard: Shard, found: dict[str, int | None]) -> bool:
        """Returns whether the staged record of ``shard`` matches the current record and the file sizes ``found``."""
        try:
            commit = Commit.load(self._store, shard, self.layout, self._manifest, UPGRADE)
        except CacheError:
            return False
        sizes = {name: commit.sizes[name] for name in MEMBERSHIPS}
        return sizes == found and commit == self._record(shard, sizes, commit.crc32c)

    def _record(self, shard: Shard, sizes: Mapping[str, int], checksums: Mapping[str, Sequence[int]]) -> Commit:
        """Returns the current record of ``shard`` with the memberships added."""
        current = Commit.load(self._store, shard, self._log.layout, self._log.manifest)
        all_sizes, all_checksums = {**current.sizes, **sizes}, {**current.crc32c, **checksums}
        return replace(
            current,
            manifest=self._manifest,
            sizes={name: all_sizes[name] for name in self.layout.arrays},
            crc32c={name: all_checksums[name] for name in self.layout.arrays},
        )


def finish_upgrade(path: Path | str) -> bool:
    """Finishes an interrupted switch of the cache in ``path``, if any; returns whether the cache now has format 2.

    Raises:
        CacheError: there is no cache, or a writer uses it.
    """
    store = open_store(path)
    if load_unfinished(store) is None:
        if load_layout(store).grid is None:
            return False
        if not store.listing(UPGRADE):
            return True
    with exclusive(store, "switching it over") as lock:
        store.remove_partial(host="")
        if (layout := load_unfinished(store)) is not None:
            _exchange_records(store, layout, lock.owner)
        store.remove(UPGRADE)
    return True


def _exchange_records(store: Store, layout: CacheLayout, owner: str) -> None:
    """Replaces the commit records and then the blocking manifest with those of ``layout``."""
    stage, manifest = store.stage(owner), manifest_checksum(layout)
    try:
        for index in sorted(list_records(store, UPGRADE)):
            commit = Commit.load(store, layout.shard(index), layout, manifest, UPGRADE)
            stage.write(f"{DONE}/{index}.json", lambda file, commit=commit: file.write(commit.encode()))  # type: ignore[misc]
        stage.publish()
    finally:
        stage.discard()
    log = CommitLog(store=store, layout=layout)
    _refuse_damaged_records(log, "the upgrade cannot be finished")
    write_files(store, {MANIFEST: metadata_files(layout)[MANIFEST]}, owner)
    mark_finished(log, owner)
    store.remove(UPGRADE)


def _refuse_damaged_records(log: CommitLog, otherwise: str) -> None:
    if log.damaged:
        raise CacheError(
            f"{len(log.damaged)} commit records of {log.store.describe()} are damaged ({min(log.damaged.items())[1]});"
            f" {otherwise}"
        )

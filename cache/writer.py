"""The writer: makes or resumes a cache and commits it shard by shard.

A shard's files are staged and flushed first, then renamed, their folders flushed, and only then its commit record
appears. Killed at any moment, the cache holds exactly the shards that have a record; the rest is done again.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import CacheError, CacheMismatchError
from ..fingerprint import canonical_json, differences
from ..locks import LOCKS
from .commits import COMMITTED, DAMAGED, FAILED, UNCOMMITTED, Commit, CommitLog
from .finished import FINISHED, encode_finished, wants_mark
from .layout import DONE, STAGING, UPGRADE, ArrayLayout, CacheLayout, Shard
from .metadata import KEYS, MANIFEST, load_layout, metadata_files
from .recipe import RECIPE, encode_recipe
from .rows import arrays_of, stored_arrays, unfit_rows
from .schema import ImageFeatures, TapSpec
from .shards import write_rows
from .stored import StoredRows, check_stored
from .stores import Store, open_store
from .stores.base import Lock, Stage
from .stores.local import LOCK

__all__ = ["CacheWriter", "mark_finished", "stage_arrays", "write_metadata"]

log = logging.getLogger(__name__)

_OWN_NAMES = {"features", "agents", "scales", DONE, STAGING, UPGRADE, KEYS, RECIPE, FINISHED, LOCKS, LOCK}


class CacheWriter:
    """A writer of a cache, alone or one of several; use ``CacheWriter.open``, and ``close`` or a ``with`` block."""

    def __init__(self, *, store: Store, layout: CacheLayout, lock: Lock) -> None:
        self.layout = layout
        self._store = store
        self._lock = lock
        self._log = CommitLog(store=store, layout=layout)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        taps: Sequence[TapSpec],
        agents: int,
        image_keys: Sequence[str],
        images_per_frame: int,
        fingerprint: Mapping[str, Any],
        profile: str = "exact",
        shard_bytes: int = 100_000_000,
        shared: bool = False,
        recipe: Mapping[str, Any] | None = None,
        grid: TapSpec | None = None,
    ) -> "CacheWriter":
        """Create the cache in ``path``, or resume it and sweep what dead writers left.

        ``grid`` is the tap on whose grid the features have memberships; without them a new cache has format 1. A
        resumed cache keeps its format, and one of format 1 leaves memberships out.

        A ``shared`` writer lets other shared ones in, and must ``claim`` each shard before it writes it.

        ``shard_bytes`` counts all arrays of a shard together, as the profile ``exact`` stores them, and holds for a new
        cache only; a resumed cache keeps its shards. ``image_keys`` are unique, frame by frame, ``images_per_frame`` of
        them a frame. ``recipe``, plain JSON values, is kept beside the fingerprint for ``repair``; it is no part of
        what two caches must share.

        Raises:
            CacheMismatchError: ``path`` holds a cache of another fingerprint, other taps or other images.
            UnfinishedUpgradeError: it holds one between two formats.
            CacheError: a setting is out of range, another writer is at work (unless both are ``shared``), or ``path``
                is in use for other things.
            DiskSpaceError: the disk is full.
        """
        store = open_store(path)
        layout = CacheLayout(
            taps=tuple(taps),
            agents=agents,
            image_keys=tuple(image_keys),
            images_per_frame=images_per_frame,
            images_per_shard=CacheLayout.shard_images(taps, agents, len(image_keys), images_per_frame, shard_bytes),
            fingerprint=json.loads(canonical_json(dict(fingerprint))),
            profile=profile,
            grid=grid,
        )
        with store.faults("opening it"):
            store.prepare(_OWN_NAMES)
            _refuse_foreign(store)
            lock = store.lock(shared=shared)
            try:
                with store.opening():
                    layout = _opened(store, layout, lock, recipe)
                return cls(store=store, layout=layout, lock=lock)
            except BaseException:
                lock.release()
                raise

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._lock.release()

    @property
    def location(self) -> Path | str:
        """Where the cache is."""
        return self._store.location

    @property
    def witness(self) -> str:
        """Key of a file that is in the cache while this writer is open: who sees it sees the same cache."""
        return self._lock.witness

    def close(self) -> None:
        """Let another writer in; what was committed stays, and closing twice does no harm.

        A cache that is complete now is marked as finished; where that cannot be done now, the next writer does it.
        """
        try:
            if self._lock.held:
                self._log.refresh()
                mark_finished(self._store, self._log, self._lock.owner)
        except (OSError, CacheError) as error:
            log.warning("%s cannot be marked as finished now (%s)", self._store.describe(), error)
        finally:
            self._lock.release()

    def resume(self) -> None:
        """Take the lock again after ``close``; what is known of the cache is kept. Between shards others may come in.

        Raises:
            CacheError: a writer is at work that does not share.
        """
        if not self._lock.held:
            with self._store.faults("opening it again"):
                self._lock = self._store.lock(shared=self._lock.shared)

    def pending_shards(self, retry_failed: bool = False, among: Iterable[Shard] | None = None) -> list[Shard]:
        """The shards that are to be written, in order; ``among`` limits them to some.

        They have no sound commit record, or a file that is missing or of another length than its record says; with
        ``retry_failed`` also those with failed images. Values are not read: ``verify_cache`` does that.
        """
        self._log.refresh()
        states = (UNCOMMITTED, DAMAGED, FAILED) if retry_failed else (UNCOMMITTED, DAMAGED)
        shards = list(self.layout.shards() if among is None else among)
        stand = self._shards_that_stand(shards)
        return [
            shard
            for shard in shards
            if any((self._log.states[shard.first : shard.last] == state).any() for state in states)
            or shard.index not in stand
        ]

    def tally(self, shards: Iterable[Shard]) -> tuple[int, int]:
        """How many images of ``shards`` have features, and how many failed."""
        self._log.refresh()
        states = [state for shard in shards for state in self._log.states[shard.first : shard.last].tolist()]
        return states.count(COMMITTED), states.count(FAILED)

    def claim(self, shard: Shard) -> bool:
        """Keep ``shard`` for this writer until it is written; False where it is not to be written by this one.

        Then another shared writer has claimed it, or has committed it since ``pending_shards`` was called. A writer
        that is alone has every claim.
        """
        if not self._lock.shared:
            return True
        with self._store.faults(f"claiming shard {shard.index}"):
            if not self._lock.claim(shard.index):
                return False
        if self._log.is_current(shard):
            return True
        self._lock.unclaim(shard.index)
        return False

    def write_shard(self, shard: Shard, features: ImageFeatures, failures: Mapping[int, str]) -> Commit:
        """Convert features to what the cache stores, and commit one shard of them; return its record.

        ``features`` has one row for each image of the shard, in order; floating arrays are float16 or float32. Values
        beyond float16 are clamped and counted. ``failures`` maps image rows (rows of the cache, not of the shard) to
        the reason they could not be computed; an image with NaN or infinity is added to them, with where it was found.
        A failed image is stored as zeros, and no reader ever gives them out.

        Raises:
            CacheError: the features do not fit the shard, a failure is not one of its rows, or the cache cannot be
                written.
            DiskSpaceError: the disk is full; the shard stays uncommitted and the rest of the cache is whole.
        """
        self._refuse(shard, failures)
        arrays = arrays_of(features, self.layout, len(shard.rows))
        failed = {**unfit_rows(arrays, shard.rows), **failures}
        clamped: dict[str, dict[int, int]] = {}
        return self._commit(shard, stored_arrays(arrays, self.layout, shard.rows, failed, clamped), failed, clamped)

    def write_rows(self, shard: Shard, stored: StoredRows) -> Commit:
        """Commit one shard of rows that have the form in which the cache stores them; return its record.

        Memberships are left out where the cache has format 1.

        Raises:
            CacheError: as ``write_shard``.
            DiskSpaceError: as ``write_shard``.
        """
        self._refuse(shard, stored.failed)
        check_stored(stored, self.layout, shard)
        arrays = ((array, stored.values(array)) for array in self.layout.arrays.values())
        return self._commit(shard, arrays, stored.failed, stored.clamped)

    def _refuse(self, shard: Shard, failed: Iterable[int]) -> None:
        """Refuse a shard that this writer may not write, and failed rows that are not its own."""
        where = self._store.describe()
        if not self._lock.held:
            raise CacheError(f"This writer of {where} is closed, or was opened in another process; open a new one")
        if not 0 <= shard.index < self.layout.shard_count or shard != self.layout.shard(shard.index):
            raise CacheError(f"{shard} is no shard of the cache {where}; take them from pending_shards()")
        if not self._lock.has_claimed(shard.index):
            raise CacheError(f"Shard {shard.index} of {where} is shared with other writers; claim() it first")
        if stray := [row for row in failed if row not in shard.rows]:
            raise CacheError(
                f"Failures name rows {stray[:5]}, shard {shard.index} has {shard.first} to {shard.last - 1}"
            )

    def _commit(
        self,
        shard: Shard,
        stored: Iterable[tuple[ArrayLayout, Iterable[np.ndarray]]],
        failed: Mapping[int, str],
        clamped: Mapping[str, Mapping[int, int]],
    ) -> Commit:
        """Write every array and then the record; ``clamped`` may be filled while the rows are taken."""
        record = f"{DONE}/{shard.index}.json"
        with self._store.faults(f"writing shard {shard.index}"):
            stage = self._store.stage(self._lock.owner)
            try:
                sizes, checksums = stage_arrays(stage, shard, stored, self.layout.images_per_shard)
                commit = Commit(
                    shard=shard.index,
                    first=shard.first,
                    last=shard.last,
                    manifest=self._log.manifest,
                    sizes=sizes,
                    crc32c=checksums,
                    clamped={name: dict(clamped[name]) for name in self.layout.arrays if clamped.get(name)},
                    failed=dict(failed),
                )
                self._store.delete(record)  # it must never stand beside other bytes
                stage.publish()
                stage.write(record, lambda file: file.write(commit.encode()))
                stage.publish()
            finally:
                stage.discard()
                self._lock.unclaim(shard.index)
        return commit

    def _shards_that_stand(self, shards: Iterable[Shard]) -> set[int]:
        """The committed ones of ``shards`` whose files all have the length that their record says."""
        stand = {shard.index for shard in shards} & set(self._log.sizes)
        for name, array in self.layout.arrays.items():
            files = {index: array.shard_file(index) for index in stand}
            sizes = self._store.sizes(files.values())
            stand = {index for index in stand if sizes.get(files[index]) == self._log.sizes[index][name]}
        return stand


def stage_arrays(
    stage: Stage, shard: Shard, stored: Iterable[tuple[ArrayLayout, Iterable[np.ndarray]]], images_per_shard: int
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Stage the files of ``shard``; the length of each and the crc32c of its rows, by the array's name."""
    sizes: dict[str, int] = {}
    checksums: dict[str, list[int]] = {}
    for array, rows in stored:
        written: list[int] = []
        sizes[array.name] = stage.write(
            array.shard_file(shard.index),
            lambda file, rows=rows, written=written: written.extend(  # type: ignore[misc]
                write_rows(file, rows, images_per_shard)
            ),
        )
        checksums[array.name] = written
    return sizes, checksums


def _refuse_foreign(store: Store) -> None:
    """Refuse a place that holds other things than a cache."""
    names = store.listing("").keys()
    foreign = [name for name in names - _OWN_NAMES if not name.endswith(".partial")]
    if MANIFEST not in names and foreign:
        raise CacheError(
            f"{store.describe()} holds other things than a cache ({', '.join(sorted(foreign)[:3])}); "
            "choose another folder"
        )


def _opened(store: Store, wanted: CacheLayout, lock: Lock, recipe: Mapping[str, Any] | None) -> CacheLayout:
    """Create or resume the cache; the layout that holds."""
    store.sweep(host=lock.host if lock.shared else "")
    if store.exists(MANIFEST):
        return _resumed(store, wanted)
    files = metadata_files(wanted)
    write_metadata(store, {RECIPE: encode_recipe(recipe), **files} if recipe else files, lock.owner)
    return wanted


def write_metadata(store: Store, files: Mapping[str, bytes], owner: str) -> None:
    """Write metadata files; the manifest, where it is among them, appears when all the others are there."""
    stage = store.stage(owner)
    try:
        for name, data in files.items():
            if name == MANIFEST:
                stage.publish()
            stage.write(name, lambda file, data=data: file.write(data))  # type: ignore[misc]
        stage.publish()
    finally:
        stage.discard()


def mark_finished(store: Store, log: CommitLog, owner: str) -> None:
    """Write the mark of a finished cache where ``log`` says that every image is committed."""
    if wants_mark(store, log):
        write_metadata(store, {FINISHED: encode_finished(log.layout)}, owner)


def _resumed(store: Store, wanted: CacheLayout) -> CacheLayout:
    found = load_layout(store)
    lines = differences(wanted.identity, found.identity)
    for name in ("taps", "agents", "images_per_frame", "images"):
        expected, stored = getattr(wanted, name), getattr(found, name)
        if expected != stored:
            lines.append(f"{name}: expected {expected}, found {stored}")
    if found.grid not in (None, wanted.grid):
        lines.append(f"grid: expected {wanted.grid}, found {found.grid}")
    if wanted.image_keys != found.image_keys and wanted.images == found.images:
        row = next(
            i for i, pair in enumerate(zip(wanted.image_keys, found.image_keys, strict=True)) if len(set(pair)) > 1
        )
        lines.append(f"image_keys: row {row}: expected {wanted.image_keys[row]!r}, found {found.image_keys[row]!r}")
    if lines:
        raise CacheMismatchError(
            f"The cache in {store.describe()} was made with other settings:\n  " + "\n  ".join(lines) + "\n"
            "Change the settings back, or choose another cache folder"
        )
    return found

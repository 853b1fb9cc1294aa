"""Creates or resumes a cache and commits it shard by shard.

The files of a shard are staged and flushed, then renamed, their folders flushed, and only then the commit record is
written. After a kill at any moment, the cache holds exactly the shards that have a record; the others are redone.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError, CacheMismatchError
from ..fingerprint import canonical_json, differences
from ..locks import LOCKS
from .arrays import write_rows
from .commits import (
    COMMITTED,
    DAMAGED,
    FAILED,
    FINISHED,
    UNCOMMITTED,
    Commit,
    CommitLog,
    encode_finished,
    list_records,
)
from .layout import DONE, STAGING, UPGRADE, ArrayLayout, CacheLayout, Shard
from .metadata import KEYS, MANIFEST, load_layout, manifest_checksum, metadata_files
from .recipe import RECIPE, encode_recipe
from .schema import TapSpec
from .stored import StoredRows, check_stored
from .stores import Lock, Stage, Store, open_store
from .stores.local import LOCK

__all__ = ["CacheWriter", "mark_finished", "stage_arrays", "write_files"]

log = logging.getLogger(__name__)

_CACHE_NAMES = {"features", "agents", "scales", DONE, STAGING, UPGRADE, KEYS, RECIPE, FINISHED, LOCKS, LOCK}


class CacheWriter:
    """An exclusive or shared writer of a cache; use ``CacheWriter.open``, and ``close`` or a ``with`` block."""

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
        part: str = "",
    ) -> "CacheWriter":
        """Creates the cache in ``path``, or resumes it and removes the partial files of dead writers.

        ``grid`` is the tap whose grid the memberships use; without it a new cache has format 1. A resumed cache keeps
        its format, and format 1 drops memberships. ``part`` is as in ``CacheLayout``.

        A ``shared`` writer allows other shared writers, and must ``claim`` each shard before it writes it.

        ``shard_bytes`` counts all arrays of a shard but memberships, as the profile ``exact`` stores them, and applies
        to a new cache only; a resumed cache keeps its shards. ``image_keys`` are unique, frame by frame,
        ``images_per_frame`` of them a frame. ``recipe`` (plain JSON values) is recorded; it is not part of the
        fingerprint.

        Raises:
            CacheMismatchError: ``path`` holds a cache of another fingerprint, other taps or other images.
            UnfinishedUpgradeError: it holds one between two formats.
            CacheError: a setting is out of range, another writer uses it (unless both are ``shared``), or ``path``
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
            part=part,
        )
        names = _CACHE_NAMES | {array.path.partition("/")[0] for array in layout.arrays.values()}
        with store.translate_errors("opening it"):
            store.prepare(names)
            _refuse_foreign(store, names)
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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._lock.release()

    @property
    def location(self) -> Path | str:
        """Location of the cache."""
        return self._store.location

    @property
    def presence_key(self) -> str:
        """Key of a file that exists in the cache while this writer is open; workers check that they see it."""
        return self._lock.presence_key

    def close(self) -> None:
        """Releases the lock. It may be called more than once.

        A complete cache is marked as finished; if that fails, the next writer does it.
        """
        try:
            if self._lock.held:
                self._log.refresh()
                mark_finished(self._log, self._lock.owner)
        except (OSError, CacheError) as error:
            log.warning("%s cannot be marked as finished now (%s)", self._store.describe(), error)
        finally:
            self._lock.release()

    def resume(self) -> None:
        """Takes the lock again after ``close``, without reading the cache again.

        Raises:
            CacheError: a writer holds an exclusive lock.
        """
        if not self._lock.held:
            with self._store.translate_errors("opening it again"):
                self._lock = self._store.lock(shared=self._lock.shared)

    def pending_shards(self, retry_failed: bool = False, among: Iterable[Shard] | None = None) -> list[Shard]:
        """Returns the shards to write, in order; ``among`` limits them to some.

        They have no valid commit record, or a file that is missing or has another size than in its record; with
        ``retry_failed`` also those with failed images. Values are not read (``verify_cache`` does that).
        """
        self._log.refresh()
        states = (UNCOMMITTED, DAMAGED, FAILED) if retry_failed else (UNCOMMITTED, DAMAGED)
        shards = list(self.layout.shards() if among is None else among)
        intact = self._intact_shards(shards)
        return [
            shard
            for shard in shards
            if any((self._log.states[shard.first : shard.last] == state).any() for state in states)
            or shard.index not in intact
        ]

    def tally(self, shards: Iterable[Shard]) -> tuple[int, int]:
        """Returns how many images of ``shards`` have features, and how many failed."""
        self._log.refresh()
        states = [state for shard in shards for state in self._log.states[shard.first : shard.last].tolist()]
        return states.count(COMMITTED), states.count(FAILED)

    def claim(self, shard: Shard) -> bool:
        """Claims ``shard`` for this writer until it is written; returns False if another writer has claimed it.

        It also returns False if the shard was committed since ``pending_shards`` was called. An exclusive writer has
        every claim.
        """
        if not self._lock.shared:
            return True
        with self._store.translate_errors(f"claiming shard {shard.index}"):
            if not self._lock.claim(shard.index):
                return False
        if self._log.is_current(shard):
            return True
        self._lock.unclaim(shard.index)
        return False

    def write_rows(self, shard: Shard, stored: StoredRows) -> Commit:
        """Commits one shard of encoded rows; returns its record. Format 1 drops memberships.

        A failed image is stored as zeros, which no reader returns.

        Raises:
            CacheError: the writer is closed, the shard not claimed, the rows do not fit, or writing fails.
            DiskSpaceError: the disk is full; the shard stays uncommitted, the rest of the cache is intact.
        """
        self._refuse(shard, stored.failed)
        check_stored(stored, self.layout, shard)
        record = f"{DONE}/{shard.index}.json"
        with self._store.translate_errors(f"writing shard {shard.index}"):
            stage = self._store.stage(self._lock.owner)
            try:
                arrays = ((array, stored.values(array)) for array in self.layout.arrays.values())
                sizes, checksums = stage_arrays(stage, shard, arrays, self.layout.images_per_shard)
                commit = Commit(
                    shard=shard.index,
                    first=shard.first,
                    last=shard.last,
                    manifest=self._log.manifest,
                    sizes=sizes,
                    crc32c=checksums,
                    clamped={
                        name: dict(stored.clamped[name]) for name in self.layout.arrays if stored.clamped.get(name)
                    },
                    failed=dict(stored.failed),
                )
                self._store.delete(record)  # a record must never exist beside other data
                stage.publish()
                stage.write(record, lambda file: file.write(commit.encode()))
                stage.publish()
            finally:
                stage.discard()
                self._lock.unclaim(shard.index)
        return commit

    def _refuse(self, shard: Shard, failed: Iterable[int]) -> None:
        """Raises if this writer may not write ``shard``, or ``failed`` has rows outside of it."""
        where = self._store.describe()
        if not self._lock.held:
            raise CacheError(f"This writer of {where} is closed, or was opened in another process; open a new one")
        if not 0 <= shard.index < self.layout.shard_count or shard != self.layout.shard(shard.index):
            raise CacheError(f"{shard} is no shard of the cache {where}; take them from pending_shards()")
        if not self._lock.has_claimed(shard.index):
            raise CacheError(f"Shard {shard.index} of {where} is shared with other writers; claim() it first")
        if foreign := [row for row in failed if row not in shard.rows]:
            raise CacheError(
                f"Failures name rows {foreign[:5]}, shard {shard.index} has {shard.first} to {shard.last - 1}"
            )

    def _intact_shards(self, shards: Iterable[Shard]) -> set[int]:
        """Returns the committed ones of ``shards`` whose files all have the size in their record."""
        intact = {shard.index for shard in shards} & self._log.sizes.keys()
        for array in self.layout.arrays.values():
            intact -= self._log.wrong_sizes(array, intact).keys()
        return intact


def stage_arrays(
    stage: Stage, shard: Shard, stored: Iterable[tuple[ArrayLayout, Iterable[np.ndarray]]], images_per_shard: int
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Stages the files of ``shard``; returns the size of each and the crc32c of its rows, by array name.

    Raises:
        OSError: a file cannot be written.
    """
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


def _refuse_foreign(store: Store, known: AbstractSet[str]) -> None:
    """Raises if the location holds something other than a cache, whose files and folders are ``known``."""
    names = store.listing("").keys()
    foreign = [name for name in names - known if not name.endswith(".partial")]
    if MANIFEST not in names and foreign:
        raise CacheError(
            f"{store.describe()} holds other things than a cache ({', '.join(sorted(foreign)[:3])}); "
            "choose another folder"
        )


def _opened(store: Store, wanted: CacheLayout, lock: Lock, recipe: Mapping[str, Any] | None) -> CacheLayout:
    """Creates or resumes the cache; returns its layout."""
    store.remove_partial(host=lock.host if lock.shared else "")
    if store.exists(MANIFEST):
        return _resumed(store, wanted)
    layout = _layout_of_records(store, wanted)
    files = metadata_files(layout)
    write_files(store, {RECIPE: encode_recipe(recipe), **files} if recipe else files, lock.owner)
    return layout


def _layout_of_records(store: Store, wanted: CacheLayout) -> CacheLayout:
    """Returns ``wanted`` in the format of the existing commit records if the manifest is missing.

    Raises:
        CacheMismatchError: they belong to a cache of another layout.
    """
    manifests = set()
    for index in list_records(store):
        with contextlib.suppress(CacheError):
            manifests.add(Commit.read(store, index).manifest)
    for layout in (wanted, replace(wanted, grid=None)):
        if not manifests or manifest_checksum(layout) in manifests:
            return layout
    raise CacheMismatchError(
        f"The manifest of {store.describe()} is missing, and its commit records belong to a cache of other settings;"
        " give those it was made with (--dataset, --config, --set), or choose another cache folder"
    )


def write_files(store: Store, files: Mapping[str, bytes], owner: str) -> None:
    """Writes whole files together; the manifest, if included, is published after all others.

    Raises:
        OSError: a file cannot be written.
        CacheError: a folder of the cache is a link.
    """
    stage = store.stage(owner)
    try:
        for name, data in files.items():
            if name == MANIFEST:
                stage.publish()
            stage.write(name, lambda file, data=data: file.write(data))  # type: ignore[misc]
        stage.publish()
    finally:
        stage.discard()


def mark_finished(log: CommitLog, owner: str) -> None:
    """Writes the mark of a finished cache if it is missing and every image is committed or failed in ``log``.

    Raises:
        OSError, CacheError: see ``write_files``.
    """
    if np.isin(log.states, (COMMITTED, FAILED)).all() and not log.store.exists(FINISHED):
        write_files(log.store, {FINISHED: encode_finished(log.layout)}, owner)


def _resumed(store: Store, wanted: CacheLayout) -> CacheLayout:
    found = load_layout(store)
    lines = differences(wanted.identity, found.identity)
    for name in ("taps", "agents", "part", "images_per_frame", "images"):
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

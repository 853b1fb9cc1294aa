"""Maintenance of caches: removing stale files and unused caches, repairing damaged ones, comparing two.

A repair writes damaged metadata anew, drops the commit records of damaged shards and keeps the others. The command that
made the cache (``extract-features`` or ``cache export``) writes again what was dropped.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError, CacheMismatchError, UnfinishedUpgradeError
from ..fingerprint import differences
from ..locks import LOCKS
from .commits import FINISHED, CommitLog, encode_finished, list_records
from .layout import DONE, STAGING, UPGRADE, CacheLayout
from .metadata import MANIFEST, load_layout, metadata_files
from .reader import FeatureReader
from .recipe import RECIPE, encode_recipe, load_recipe
from .stores import Store, exclusive, open_store
from .stores.local import LOCK
from .verify import metadata_faults, require_cache, row_faults
from .writer import write_files

__all__ = ["collect_garbage", "diff_caches", "remove_unused", "repair_cache"]


def collect_garbage(path: Path | str, *, dry_run: bool = False) -> dict[str, Any]:
    """Removes files that no commit record refers to and no live process owns; ``dry_run`` only lists them.

    Stale are: partial files, everything in ``staging/``, lock files of dead processes, commit records of shards that do
    not exist, and shard files without a record. Shard files with a damaged record are kept for ``repair``. Files that
    do not belong to a cache are kept too, and links are not followed. Readers are not affected.

    Returns a JSON-ready dictionary: ``cache``, ``files`` (list of ``file`` and ``bytes``), ``bytes``, ``dry_run``.

    Raises:
        CacheError: there is no cache in ``path``, its manifest is damaged, or a writer uses it.
    """
    store = open_store(path)
    layout = load_layout(store)
    with exclusive(store, "removing stale files") as lock:
        recorded = _recorded_files(CommitLog(store=store, layout=layout))
        garbage = {file: size for file, size in store.files() if _is_garbage(file, layout, recorded, lock.owner)}
        if not dry_run:
            store.remove_partial(host="")
            for file in garbage:
                store.delete(file)
    return _summary(store, garbage, dry_run)


def remove_unused(folder: Path, *, dry_run: bool = False) -> dict[str, Any] | None:
    """Removes a cache without any commit, with its folder; returns None if ``folder`` is a link or holds anything else.

    Returns the same dictionary as ``collect_garbage``.

    Raises:
        CacheError: a writer uses it.
    """
    store = open_store(folder)
    if folder.is_symlink():
        return None
    try:
        known = {*metadata_files(load_layout(store)), RECIPE, LOCK}
    except CacheError:
        return None
    with exclusive(store, "removing it"):
        files = [(f, size) for f, size in store.files() if f != LOCK and not f.startswith(f"{LOCKS}/")]
        if any(file not in known and not file.startswith(f"{STAGING}/") for file, _ in files):
            return None
        if not dry_run:
            shutil.rmtree(folder)
    return _summary(store, dict(files), dry_run)


def _summary(store: Store, files: dict[str, int], dry_run: bool) -> dict[str, Any]:
    return {
        "cache": store.describe(),
        "files": [{"file": file, "bytes": size} for file, size in sorted(files.items())],
        "bytes": sum(files.values()),
        "dry_run": dry_run,
    }


def _recorded_files(log: CommitLog) -> set[str]:
    """Returns the commit records of existing shards, valid or not, and the shard files that they refer to."""
    shards = [*log.sizes, *log.damaged]
    records = {f"{DONE}/{index}.json" for index in shards}
    return records | {array.shard_file(index) for array in log.layout.arrays.values() for index in shards}


def _is_garbage(file: str, layout: CacheLayout, recorded: set[str], owner: str) -> bool:
    folder, _, name = file.rpartition("/")
    if folder in ("", STAGING, DONE) and name.endswith(".partial"):
        return True
    if folder == LOCKS:
        return not name.startswith(owner)
    if file in recorded:
        return False
    if file.startswith(f"{UPGRADE}/"):
        return layout.grid is not None  # in format 1 they belong to an upgrade that can be resumed
    return file.startswith((f"{STAGING}/", f"{DONE}/", *(f"{array.path}/c/" for array in layout.arrays.values())))


def repair_cache(path: Path | str) -> dict[str, Any]:
    """Drops the damaged shards of the cache in ``path`` and writes its metadata anew; the cache is locked meanwhile.

    A damaged manifest is deleted: the command that made the cache writes it again and keeps the committed shards.

    Returns a JSON-ready dictionary: ``dropped`` (images of the dropped shards) and ``metadata`` (the files that were
    written anew or deleted).

    Raises:
        UnfinishedUpgradeError: the cache is between two formats.
        CacheMismatchError: it is of another format.
        CacheError: there is no cache, or a writer uses it.
    """
    store = open_store(path)
    require_cache(store)
    with exclusive(store, "repairing it") as lock:
        try:
            layout = load_layout(store)
        except (CacheMismatchError, UnfinishedUpgradeError):
            raise
        except CacheError:
            store.delete(MANIFEST)
            return {"dropped": 0, "metadata": [MANIFEST]}
        metadata = _rewrite_files(store, layout, lock.owner)
        return {"dropped": _drop_damaged(store, layout), "metadata": metadata}


def _rewrite_files(store: Store, layout: CacheLayout, owner: str) -> list[str]:
    """Writes damaged metadata files anew, or deletes a recipe of which nothing can be read; returns their names."""
    faults, recipe = metadata_faults(store, layout), load_recipe(store)
    files = {name: data for name, data in metadata_files(layout).items() if name in faults}
    if FINISHED in faults:
        files[FINISHED] = encode_finished(layout)
    if RECIPE in faults and recipe is not None:
        files[RECIPE] = encode_recipe(recipe)
    elif RECIPE in faults:
        store.delete(RECIPE)
    write_files(store, files, owner)
    return sorted(faults)


def _drop_damaged(store: Store, layout: CacheLayout) -> int:
    """Deletes the records of shards with a damaged record, file or row; returns the number of their images.

    A shard whose record is already missing in a finished cache counts too.
    """
    log = CommitLog(store=store, layout=layout)
    found = [fault.row for fault in row_faults(log) if fault.row is not None]
    damaged = {row // layout.images_per_shard for row in found} | log.damaged.keys()
    unfinished = {*range(layout.shard_count)} - list_records(store).keys() | damaged
    if unfinished and store.exists(FINISHED):
        store.delete(FINISHED)
        damaged |= unfinished
    for index in sorted(damaged):
        store.delete(f"{DONE}/{index}.json")
    return sum(len(layout.shard(index).rows) for index in damaged)


def diff_caches(first: Path | str, second: Path | str) -> dict[str, Any]:
    """Compares two caches by the checksums in their commit records.

    Returns a JSON-ready dictionary: ``equal``; ``fingerprint``, a line for each field that differs; ``images``,
    ``arrays`` and ``readable`` (images that can be read), each with ``only_first`` and ``only_second``; ``rows``: array
    -> keys of the images, readable in both, whose stored values differ, for arrays of equal shape and type.

    Raises:
        CacheError: there is no cache in one of them, or its metadata is damaged.
    """
    ours, theirs = FeatureReader(first), FeatureReader(second)
    lines = differences(ours.layout.identity, theirs.layout.identity)
    rows = _shared_rows(ours, theirs)
    readable = [{key for key, ok in zip(r.image_keys, r.available, strict=True) if ok} for r in (ours, theirs)]
    found: dict[str, Any] = {
        "fingerprint": lines,
        "images": _only(ours.image_keys, theirs.image_keys),
        "arrays": _only(list(ours.layout.arrays), list(theirs.layout.arrays)),
        "readable": _only(sorted(readable[0]), sorted(readable[1])),
        "rows": _rows_that_differ(ours, theirs, rows),
    }
    nothing = not lines and not any(found["rows"].values())
    same = nothing and not any(found[kind][side] for kind in ("images", "arrays", "readable") for side in found[kind])
    return {"equal": same, **found}


def _only(first: Sequence[str], second: Sequence[str]) -> dict[str, list[str]]:
    ours, theirs = set(first), set(second)
    return {
        "only_first": [name for name in first if name not in theirs],
        "only_second": [name for name in second if name not in ours],
    }


def _shared_rows(ours: FeatureReader, theirs: FeatureReader) -> np.ndarray:
    """Returns the rows in the first and the second cache of the images readable in both, int64 [images, 2]."""
    row_of_key = {key: row for row, key in enumerate(theirs.image_keys)}
    pairs = [(row, row_of_key[key]) for row, key in enumerate(ours.image_keys) if key in row_of_key]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    return rows[ours.available[rows[:, 0]] & theirs.available[rows[:, 1]]]


def _rows_that_differ(ours: FeatureReader, theirs: FeatureReader, rows: np.ndarray) -> dict[str, list[str]]:
    found = {}
    for name, array in ours.layout.arrays.items():
        other = theirs.layout.arrays.get(name)
        if other is not None and (array.row_shape, array.dtype) == (other.row_shape, other.dtype):
            differ = ours.checksums(name)[rows[:, 0]] != theirs.checksums(name)[rows[:, 1]]
            found[name] = [ours.image_keys[row] for row in rows[differ, 0]]
    return found

"""Removes stale files that killed writers left in a cache, and caches that were never used."""

import shutil
from pathlib import Path
from typing import Any

from ..errors import CacheError
from ..locks import LOCKS
from .commits import CommitLog
from .layout import DONE, STAGING, UPGRADE, CacheLayout
from .metadata import load_layout, metadata_files
from .recipe import RECIPE
from .stores import Store, exclusive, open_store
from .stores.local import LOCK

__all__ = ["collect_garbage", "remove_unused"]


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
            store.sweep(host="")
            for file in garbage:
                store.delete(file)
    return _summary(store, garbage, dry_run)


def remove_unused(folder: Path, *, dry_run: bool = False) -> dict[str, Any] | None:
    """Removes a cache without any commit, with its folder; returns None if ``folder`` holds anything else.

    Returns the same dictionary as ``collect_garbage``.

    Raises:
        CacheError: a writer uses it.
    """
    store = open_store(folder)
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

"""Litter: what killed writers and older layouts left in a cache, told from what is committed, and removed."""

import shutil
from pathlib import Path
from typing import Any

from ..errors import CacheError
from ..locks import LOCKS
from .commits import CommitLog
from .layout import DONE, STAGING, UPGRADE, CacheLayout
from .metadata import load_layout, metadata_files
from .recipe import RECIPE
from .stores import Store, open_store
from .stores.local import LOCK

__all__ = ["collect_litter", "remove_unused"]


def collect_litter(path: Path | str, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove what no commit record vouches for and no live process owns; with ``dry_run`` only say what that is.

    Litter is: half-written files, all that is left in ``staging/``, locks of dead processes, commit records of no shard
    of the cache, and shard files that no record speaks of. Files whose record is damaged stay for ``repair``, files
    that are nothing of a cache stay too, and a link is never followed. Readers are not disturbed.

    Returns a JSON-ready dictionary: ``cache``, ``files`` (list of ``file`` and ``bytes``), ``bytes``, ``dry_run``.

    Raises:
        CacheError: there is no cache in ``path``, its manifest is damaged, or a writer is at work (it is named).
    """
    store = open_store(path)
    layout = load_layout(store)
    with store.faults("collecting litter"):
        lock = store.lock(shared=False)
        try:
            vouched = _vouched_for(CommitLog(store=store, layout=layout))
            litter = {file: size for file, size in store.files() if _is_litter(file, layout, vouched, lock.owner)}
            if not dry_run:
                store.sweep(host="")
                for file in litter:
                    store.delete(file)
        finally:
            lock.release()
    return _told(store, litter, dry_run)


def remove_unused(folder: Path, *, dry_run: bool = False) -> dict[str, Any] | None:
    """Remove a cache that nothing was ever committed to, folder and all; None where ``folder`` holds anything else.

    Returns what ``collect_litter`` does.

    Raises:
        CacheError: a writer is at work on it.
    """
    store = open_store(folder)
    try:
        known = {*metadata_files(load_layout(store)), RECIPE, LOCK}
    except CacheError:
        return None
    with store.faults("removing it"):
        lock = store.lock(shared=False)
        try:
            files = [(f, size) for f, size in store.files() if f != LOCK and not f.startswith(f"{LOCKS}/")]
            if any(file not in known and not file.startswith(f"{STAGING}/") for file, _ in files):
                return None
            if not dry_run:
                shutil.rmtree(folder)
        finally:
            lock.release()
    return _told(store, dict(files), dry_run)


def _told(store: Store, files: dict[str, int], dry_run: bool) -> dict[str, Any]:
    return {
        "cache": store.describe(),
        "files": [{"file": file, "bytes": size} for file, size in sorted(files.items())],
        "bytes": sum(files.values()),
        "dry_run": dry_run,
    }


def _vouched_for(log: CommitLog) -> set[str]:
    """Commit records of shards of the cache, and the shard files of those that have one, sound or not."""
    shards = [*log.sizes, *log.damaged]
    records = {f"{DONE}/{index}.json" for index in shards}
    return records | {array.shard_file(index) for array in log.layout.arrays.values() for index in shards}


def _is_litter(file: str, layout: CacheLayout, vouched: set[str], owner: str) -> bool:
    folder, _, name = file.rpartition("/")
    if folder in ("", STAGING, DONE) and name.endswith(".partial"):
        return True
    if folder == LOCKS:
        return not name.startswith(owner)
    if file in vouched:
        return False
    if file.startswith(f"{UPGRADE}/"):
        return layout.grid is not None  # in format 1 they are the work of an upgrade, which goes on with them
    return file.startswith((f"{STAGING}/", f"{DONE}/", *(f"{array}/c/" for array in layout.arrays)))

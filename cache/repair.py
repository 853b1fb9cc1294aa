"""Repairs a cache: writes damaged metadata anew, and drops the commit records of damaged shards.

The other shards are kept. What is dropped is missing then, and the command that made the cache (``extract-features`` or
``cache export``) writes it again.
"""

from pathlib import Path
from typing import Any

from ..errors import CacheError, CacheMismatchError, UnfinishedUpgradeError
from .commits import FINISHED, CommitLog, encode_finished, list_records
from .layout import DONE, CacheLayout
from .metadata import MANIFEST, load_layout, metadata_files
from .recipe import RECIPE, encode_recipe, load_recipe
from .stores import Store, exclusive, open_store
from .verify import metadata_faults, require_cache, row_faults
from .writer import write_metadata

__all__ = ["repair_cache"]


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
        metadata = _rewrite_metadata(store, layout, lock.owner)
        return {"dropped": _drop_damaged(store, layout), "metadata": metadata}


def _rewrite_metadata(store: Store, layout: CacheLayout, owner: str) -> list[str]:
    """Writes damaged metadata files anew, or deletes a recipe of which nothing can be read; returns their names."""
    faults, recipe = metadata_faults(store, layout), load_recipe(store)
    files = {name: data for name, data in metadata_files(layout).items() if name in faults}
    if FINISHED in faults:
        files[FINISHED] = encode_finished(layout)
    if RECIPE in faults and recipe is not None:
        files[RECIPE] = encode_recipe(recipe)
    elif RECIPE in faults:
        store.delete(RECIPE)
    write_metadata(store, files, owner)
    return sorted(faults)


def _drop_damaged(store: Store, layout: CacheLayout) -> int:
    """Deletes the records of shards with a damaged record, file or row; returns the number of their images.

    A shard whose record is already missing in a finished cache counts too.
    """
    log = CommitLog(store=store, layout=layout)
    found = [fault.row for fault in row_faults(store, log) if fault.row is not None]
    damaged = {row // layout.images_per_shard for row in found} | log.damaged.keys()
    unfinished = {*range(layout.shard_count)} - list_records(store).keys() | damaged
    if unfinished and store.exists(FINISHED):
        store.delete(FINISHED)
        damaged |= unfinished
    for index in sorted(damaged):
        store.delete(f"{DONE}/{index}.json")
    return sum(len(layout.shard(index).rows) for index in damaged)

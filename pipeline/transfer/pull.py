"""Fetches files from a place into a folder or S3; every byte is compared with the manifest before it is kept."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ...errors import CacheMismatchError, ConfigError, DiskSpaceError
from ...locks import LOCKS
from .copy import Item, copied, hashed, rank
from .manifest import PLAN, Manifest
from .places import StorePlace

__all__ = ["pull_items"]

log = logging.getLogger(__name__)

_LOCKS = ("lock", "writer.lock")


def pull_items(
    items: Sequence[Item],
    target: StorePlace,
    wanted: Manifest,
    *,
    found: str | None,
    lock: Callable[[], AbstractContextManager[Any]],
    replace: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Fetches ``items`` to ``target``; ``wanted`` describes them, and ``found`` is the identity of what is there.

    More of the cache that is there is added to it; another one is only replaced with ``replace``. A file that is there
    with the right digest is not fetched again. ``lock`` excludes other writers meanwhile.

    Returns a JSON-ready dictionary: ``files``, ``bytes``, ``there`` (bytes that were there), ``fetched``.

    Raises:
        CacheMismatchError: another cache or run is there.
        ConfigError: the target holds other things.
        DiskSpaceError: the disk has too little space.
        StoreError, CacheError: a file is damaged, or a place failed; the same call resumes.
    """
    there = {name: size for name, size in target.files().items() if not _is_lock(name)}
    if PLAN in there:
        found = Manifest.parse(target.read(PLAN, there[PLAN]), target.describe(PLAN)).identity
    elif there and found is None:
        raise ConfigError(f"{target.describe()} holds other files ({min(there)}); choose another folder with --out")
    if found not in (None, wanted.identity) and not replace:
        raise CacheMismatchError(
            f"{target.describe()} holds another {wanted.kind} than the one to pull, {wanted.name}; choose another"
            " folder with --out, or replace it with --replace"
        )
    same = {} if (replaced := found not in (None, wanted.identity)) else there
    near = [item for item in items if item.sha256 and same.get(item.name) == item.size]
    total, likely = sum(item.size for item in items), sum(item.size for item in near)
    log.info("%d files, %.3f GB, %.3f GB of them are there", len(items), total / 1e9, likely / 1e9)
    facts: dict[str, Any] = {"files": len(items), "bytes": total, "there": likely}
    _require_space(target, total - likely)
    if dry_run:
        return {**facts, "fetched": 0}
    with lock():
        have = _sound(near, target)
        pending = [item for item in items if item.name not in have]
        records = [item.name for item in pending if item.name in there and rank(item.name) == 1]
        target.delete(sorted(there if replaced else records, key=rank, reverse=True))
        kept = sum(item.size for item in near if item.name in have)
        fetched = 0
        if pending:
            target.write({PLAN: _plan(wanted)})
            fetched = copied(pending, target, "Pulling", done=kept)
        if pending or PLAN in there:
            target.delete([PLAN])
    return {**facts, "bytes": kept + fetched, "there": kept, "fetched": fetched}


def _plan(wanted: Manifest) -> bytes:
    identity = {"kind": wanted.kind, "name": wanted.name, "identity": wanted.identity}
    return Manifest(**identity, facts={}, files={}).encode()  # type: ignore[arg-type]


def _sound(items: Sequence[Item], target: StorePlace) -> set[str]:
    """Returns the names of the files at ``target`` that have the digest of their item."""
    local = [Item(name=item.name, size=item.size, read=_reader(target, item)) for item in items]
    found = {item.name: item.sha256 for item in hashed(local, "Checking what is there", lambda *_: None)}
    return {item.name for item in items if found[item.name] == item.sha256}


def _reader(target: StorePlace, item: Item) -> Callable[[], bytes]:
    return lambda: target.read(item.name, item.size)


def _is_lock(name: str) -> bool:
    return name in _LOCKS or name.rpartition("/")[2] == _LOCKS[1] or LOCKS in name.split("/")[:-1]


def _require_space(target: StorePlace, needed: int) -> None:
    free = target.store.free_bytes()
    if free is not None and needed > free:
        raise DiskSpaceError(
            f"{needed / 1e9:.2f} GB are to come to {target.describe()}, and its disk has {free / 1e9:.2f} GB free; free"
            " some, pull fewer taps (--taps) or images, or choose another disk with --out"
        )

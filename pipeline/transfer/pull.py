"""Fetches files from a remote and checks them against its manifest; pulls caches and parts of caches."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any

from ...cache.commits import CommitLog
from ...cache.layout import DONE
from ...cache.metadata import MANIFEST as ROOT
from ...cache.metadata import holds_networks, load_layout, manifest_checksum
from ...cache.stores import Store, exclusive, join_location, open_store
from ...cache.verify import refuse_damaged_metadata
from ...errors import CacheError, CacheMismatchError, ConfigError, DiskSpaceError
from ...fingerprint import fingerprint_digest
from ...locks import LOCKS
from ..workspace import Workspace
from .content import Choice, Part, Shared, cache_items, inner_store, part_prefixes, root_items
from .copy import Item, copied, hashed, write_order
from .manifest import PLAN, Manifest
from .remotes import Remote, StoreRemote

__all__ = ["pull_cache", "pull_items"]

log = logging.getLogger(__name__)

_LOCKS = ("lock", "writer.lock")


def pull_items(
    items: Sequence[Item],
    target: StoreRemote,
    wanted: Manifest,
    *,
    found: str | None,
    lock: Callable[[], AbstractContextManager[Any]],
    replace: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Fetches ``items`` to ``target``; ``wanted`` describes them, ``found`` is the identity of what ``target`` holds.

    If the target holds a part of the same cache, the missing files are added; another cache or run is replaced only
    with ``replace``. Files with the right digest are not fetched again. ``lock`` locks the target during the transfer.

    Returns a JSON-ready dictionary: ``files``, ``bytes``, ``there`` (bytes that were there), ``fetched``.

    Raises:
        CacheMismatchError: another cache or run is there.
        ConfigError: the target holds other things.
        DiskSpaceError: the disk has too little space.
        StoreError, CacheError: a file is damaged, or a remote failed; the same call resumes.
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
        records = [item.name for item in pending if item.name in there and write_order(item.name) == 1]
        if replaced:  # if the deletion is interrupted, this says that what remains is of another cache or run
            target.write({PLAN: changed(wanted, identity="", facts={}, files={}).encode()})
            records = [name for name in there if name != PLAN]
        target.delete(sorted(records, key=write_order, reverse=True))
        kept = sum(item.size for item in near if item.name in have)
        fetched = 0
        if pending:
            target.write({PLAN: changed(wanted, facts={}, files={}).encode()})
            fetched = copied(pending, target, "Pulling", done=kept)
        if pending or PLAN in there:
            target.delete([PLAN])
    return {**facts, "bytes": kept + fetched, "there": kept, "fetched": fetched}


def _sound(items: Sequence[Item], target: StoreRemote) -> set[str]:
    """Returns the names of the files at ``target`` that have the digest of their item."""
    local = [Item(name=item.name, size=item.size, read=partial(target.read, item.name, item.size)) for item in items]
    found = {item.name: item.sha256 for item in hashed(local, "Checking what is there", lambda *_: None)}
    return {item.name for item in items if found[item.name] == item.sha256}


def _is_lock(name: str) -> bool:
    return name in _LOCKS or name.rpartition("/")[2] == _LOCKS[1] or LOCKS in name.split("/")[:-1]


def _require_space(target: StoreRemote, needed: int) -> None:
    free = target.store.free_bytes()
    if free is not None and needed > free:
        raise DiskSpaceError(
            f"The pull needs {needed / 1e9:.2f} GB in {target.describe()}, and its disk has {free / 1e9:.2f} GB free;"
            " free some, pull fewer taps (--taps) or images, or choose another disk with --out"
        )


def pull_cache(
    workspace: Workspace,
    remote: Remote,
    manifest: Manifest,
    choice: Choice,
    *,
    out: Path | str | None,
    replace: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Fetches a cache, or what is chosen of it, into the folder of caches, where commands find it; or into ``out``.

    Returns the dictionary of ``pull_items``, with ``kind``, ``name``, ``images``, ``left_out`` (images that were asked
    for and are not there) and ``cache`` (its location).

    Raises:
        StoreError: a file is damaged or missing, or the remote failed; the same call resumes.
        CacheError: nothing of the choice is there, or another process writes to the target.
        CacheMismatchError, ConfigError, DiskSpaceError: see ``pull_items``.
    """
    several = holds_networks(Shared(remote, manifest))
    prefixes = part_prefixes(
        manifest.files, choice, several=several, where=remote.describe(), load=partial(Shared, remote, manifest)
    )
    parts = [_remote_part(remote, manifest, prefix, choice) for prefix in prefixes]
    name, identity = manifest.name, f"networks {manifest.name}"
    if not several:
        chosen = parts[0].selection
        identity = chosen.manifest
        if chosen.layout is not chosen.source:
            name = f"{name.rpartition('-')[0]}-{fingerprint_digest(chosen.layout.fingerprint)[:12]}"
    target = StoreRemote(open_store(out or join_location(workspace.cache_root(), name)))
    done = pull_items(
        [item for part in parts for item in part.items] + (root_items() if several else []),
        target,
        changed(manifest, name=name, identity=identity),
        found=_identity(target.store, parts, identity, several=several),
        lock=lambda: _writing(target.store, parts),
        replace=replace,
        dry_run=dry_run,
    )
    if not dry_run:
        _require_sound(target.store, parts)
    images, left_out = min(part.images for part in parts), max(part.left_out for part in parts)
    facts = {"kind": "cache", "name": name, "images": images, "left_out": left_out}
    return {**facts, "cache": str(target.store.location), **done}


def _remote_part(remote: Remote, manifest: Manifest, prefix: str, choice: Choice) -> Part:
    files = Shared(remote, manifest, prefix)
    records = [name.removeprefix(f"{prefix}{DONE}/") for name in manifest.files if name.startswith(f"{prefix}{DONE}/")]
    there = {int(stem) for record in records if (stem := record.removesuffix(".json")).isdecimal()}
    return cache_items(files, choice, prefix=prefix, there=there, data=files.item)


def _identity(store: Store, parts: list[Part], wanted: str, *, several: bool) -> str | None:
    """Returns the identity of the cache in ``store``: ``wanted`` if the parts can be added to it; None without one."""
    if not store.exists(ROOT):
        return None
    try:
        if not several:
            return manifest_checksum(load_layout(store))
        fits = holds_networks(store)
        for part in parts:
            inner = inner_store(store, part.prefix)
            fits = fits and (not inner.exists(ROOT) or manifest_checksum(load_layout(inner)) == part.selection.manifest)
    except CacheError:
        fits = False
    return wanted if fits else ""


@contextmanager
def _writing(store: Store, parts: list[Part]) -> Iterator[None]:
    """Holds the writer's lock of every part."""
    with ExitStack() as stack:
        for part in parts:
            inner = inner_store(store, part.prefix)
            with inner.translate_errors("opening it"):
                inner.prepare(())
            stack.enter_context(exclusive(inner, "pulling it"))
        yield


def _require_sound(store: Store, parts: list[Part]) -> None:
    """Checks that metadata and commit records of the pulled parts agree, as every reader does.

    Raises:
        CacheError: whoever pushed them pushed something else than a cache.
    """
    for part in parts:
        inner = inner_store(store, part.prefix)
        layout = load_layout(inner)
        refuse_damaged_metadata(inner, layout)
        damaged = CommitLog(store=inner, layout=layout).damaged
        if reason := next(iter(damaged.values()), ""):
            raise CacheError(
                f"The cache that was pulled is not sound: {reason}; ask whoever pushed it to push it again"
            )

"""Pulls caches, or chosen taps, networks and images of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any

from ...cache.commits import CommitLog
from ...cache.layout import DONE
from ...cache.metadata import MANIFEST as ROOT
from ...cache.metadata import holds_networks, load_layout, manifest_checksum
from ...cache.stores import Store, exclusive, open_store
from ...cache.verify import refuse_damaged_metadata
from ...errors import CacheError
from ...fingerprint import fingerprint_digest
from ..workspace import Workspace
from .content import Choice, Part, Shared, cache_items, inner_store, part_prefixes, root_items
from .manifest import Manifest
from .places import Place, StorePlace
from .pull import pull_items

__all__ = ["pull_cache"]


def pull_cache(
    workspace: Workspace,
    place: Place,
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
        StoreError: a file is damaged or missing, or the place failed; the same call resumes.
        CacheError: nothing of the choice is there, or another process writes to the target.
        CacheMismatchError, ConfigError, DiskSpaceError: see ``pull_items``.
    """
    several = holds_networks(Shared(place, manifest))
    prefixes = part_prefixes(
        manifest.files, choice, several=several, where=place.describe(), load=partial(Shared, place, manifest)
    )
    parts = [_remote_part(place, manifest, prefix, choice) for prefix in prefixes]
    name, identity = manifest.name, f"networks {manifest.name}"
    if not several:
        chosen = parts[0].selection
        identity = chosen.manifest
        if chosen.layout is not chosen.source:
            name = f"{name.rpartition('-')[0]}-{fingerprint_digest(chosen.layout.fingerprint)[:12]}"
    root = workspace.cache_root()
    target = StorePlace(open_store(out or (root / name if isinstance(root, Path) else f"{root}/{name}")))
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


def _remote_part(place: Place, manifest: Manifest, prefix: str, choice: Choice) -> Part:
    files = Shared(place, manifest, prefix)
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
            with inner.faults("opening it"):
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

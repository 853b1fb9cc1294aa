"""Pushes caches, or parts of them, and other files to a remote with a manifest; files that are there are skipped."""

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ...cache.commits import CommitLog
from ...cache.metadata import KEYS, holds_networks, load_layout
from ...cache.metadata import MANIFEST as ROOT
from ...cache.network_parts import check_parts
from ...cache.recipe import load_recipe
from ...cache.stores import Store, open_store
from ...cache.stores.base import Files
from ...cache.stores.local import LocalStore
from ...cache.verify import refuse_damaged_metadata
from ...errors import CacheError, CacheMismatchError, ConfigError, StoreError
from ...fingerprint import differences, fingerprint_digest
from ...locks import exclusive_lock
from ..workspace import Workspace
from .cards import cache_card
from .content import Choice, Part, cache_items, inner_store, part_prefixes, root_items
from .copy import Item, copied, hashed
from .local_paths import Machine
from .manifest import LARGEST, MANIFEST, PLAN, FileFacts, Manifest, plain_name
from .remotes import Remote, StoreRemote

__all__ = ["CARD", "cache_dataset", "previous", "push_cache", "push_items"]

log = logging.getLogger(__name__)

CARD = "README.md"
_KEPT = frozenset({CARD, ".gitattributes", "LICENSE", "LICENSE.md", "lock"})  #: other files that may lie in a remote


@dataclass(frozen=True, kw_only=True)
class _Before:
    """What a remote holds: the sizes of its ``files``, and its manifest, or the one that a push had begun with."""

    files: Mapping[str, int]
    manifest: Manifest | None

    @property
    def known(self) -> dict[str, FileFacts]:
        """The files that are complete."""
        listed = self.manifest.files if self.manifest else {}
        return {name: facts for name, facts in listed.items() if self.files.get(name) == facts.size}


def previous(remote: Remote) -> Manifest | None:
    """Returns the manifest of a finished push to ``remote``, None if there is none.

    Raises:
        StoreError: it is damaged, or the remote cannot be read.
    """
    files = remote.files()
    return _read(remote, files, MANIFEST) if MANIFEST in files and PLAN not in files else None


def _read(remote: Remote, files: Mapping[str, int], name: str) -> Manifest:
    if files[name] > LARGEST:
        raise StoreError(f"{remote.describe(name)} has {files[name]:,} bytes, more than a manifest can have")
    return Manifest.parse(remote.read(name, files[name]), remote.describe(name))


def push_items(
    items: Sequence[Item],
    remote: Remote,
    wanted: Manifest,
    *,
    card: str,
    check: Callable[[str, bytes], None],
    replace: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Sends ``items`` to ``remote``; ``wanted`` describes them and has no files yet.

    If the remote holds a part of the same cache, the missing files are added; another cache or run is replaced only
    with ``replace``. ``check`` is called with the name and the content of every file before the first one is sent. An
    existing card is kept.

    Returns a JSON-ready dictionary: ``place``, ``files``, ``bytes``, ``there`` (bytes that were there), ``sent``.

    Raises:
        CacheMismatchError: another cache or run is there.
        ConfigError: the remote holds other things, or ``check`` refused a file.
        StoreError, CacheError, DiskSpaceError: a file or the remote failed; the same call resumes.
    """
    before = _examine(remote, wanted, replace=replace)
    there = sum(item.size for item in items if before.files.get(item.name) == item.size and item.name in before.known)
    total = sum(item.size for item in items)
    where = remote.describe()
    log.info("%s: %d files, %.3f GB, %.3f GB of them are there", where, len(items), total / 1e9, there / 1e9)
    if remote.most_files is not None and len(items) > remote.most_files:
        log.warning(
            "These are more files than the %d that one repository should hold; push some --scenes to each of several,"
            " or extract with larger shards (extract.shard_mb)",
            remote.most_files,
        )
    facts: dict[str, Any] = {"place": where, "files": len(items), "bytes": total, "there": there}
    if dry_run:
        return {**facts, "sent": 0}
    with _locked(remote):
        before = _examine(remote, wanted, replace=replace)
        items = hashed(items, "Computing SHA-256", check)
        files = {item.name: FileFacts(item.size, item.sha256) for item in items}
        _refuse_other_parts(files, before, remote, wanted, replace=replace)
        return {**facts, **_send(items, files, remote, before, wanted, card)}


def _send(
    items: Sequence[Item],
    files: Mapping[str, FileFacts],
    remote: Remote,
    before: _Before,
    wanted: Manifest,
    card: str,
) -> dict[str, Any]:
    known, old = before.known, before.manifest
    same = old is not None and old.identity == wanted.identity
    kept = {name: facts for name, facts in known.items() if same and wanted.kind == "cache" and name not in files}
    stale = [
        name
        for name in (old.files if old else ())
        if name in before.files and name not in kept and known.get(name) != files.get(name)
    ]
    manifest = changed(wanted, files={**kept, **files})
    pending = [item for item in items if known.get(item.name) != files[item.name]]
    if old and stale:
        remote.write({PLAN: old.encode()})  # if the deletion is interrupted, this says what the rest is
        remote.delete([*([MANIFEST] if MANIFEST in before.files else []), *stale])
    there = sum(item.size for item in items) - sum(item.size for item in pending)
    sent = 0
    if pending:
        remote.write({PLAN: manifest.encode()})
        remote.finish()
        sent = copied(pending, remote, "Pushing", done=there)
    remote.write({MANIFEST: manifest.encode(), **({} if CARD in before.files else {CARD: card.encode()})})
    remote.delete([PLAN] if pending or stale or PLAN in before.files else [])
    remote.finish()
    return {"bytes": there + sent, "there": there, "sent": sent}


def _examine(remote: Remote, wanted: Manifest, *, replace: bool) -> _Before:
    """Reads what is at the remote, and refuses to write over anything else."""
    files = remote.files()
    name = next((name for name in (PLAN, MANIFEST) if name in files), None)
    old = _read(remote, files, name) if name else None
    foreign = sorted(files.keys() - _KEPT - {PLAN, MANIFEST} - (old.files.keys() if old else set()))
    if foreign:
        raise ConfigError(
            f"{remote.describe()} holds other files ({', '.join(foreign[:3])}); give a folder that is empty or not"
            " there"
        )
    if old and old.identity != wanted.identity and not replace:
        lines = differences(wanted.facts.get("fingerprint", {}), old.facts.get("fingerprint", {}))
        listed = "".join(f"\n  {line[:300]}" for line in lines)
        raise CacheMismatchError(
            f"{remote.describe()} holds another {old.kind}, {old.name}:{listed}\nGive another folder, or replace it"
            " with --replace"
        )
    return _Before(files=files, manifest=old)


def _locked(remote: Remote) -> AbstractContextManager[None]:
    """Excludes other pushes to a folder; other remotes have no locks."""
    if isinstance(remote, StoreRemote) and isinstance(remote.store, LocalStore):
        return exclusive_lock(Path(remote.store.root), work="pushes", option="the argument PLACE")
    return nullcontext()


def _refuse_other_parts(
    files: Mapping[str, FileFacts], before: _Before, remote: Remote, wanted: Manifest, *, replace: bool
) -> None:
    """Refuses to mix a part of a cache of several networks with one that was made with other settings."""
    if replace or wanted.kind != "cache" or before.manifest is None or before.manifest.identity != wanted.identity:
        return
    for name, facts in files.items():
        there = before.manifest.files.get(name, facts)
        if PurePosixPath(name).name in (ROOT, KEYS) and there.sha256 != facts.sha256:
            raise CacheMismatchError(
                f"{remote.describe(name)} is that of a cache with other settings; give another folder, or replace it"
                " with --replace"
            )


def cache_dataset(files: Files, name: str) -> str:
    """Returns the data set of a cache: that of its recipe, else the start of its ``name``."""
    recipe = load_recipe(files) or {}
    return str(recipe.get("dataset") or name.rpartition("-")[0] or name)


def push_cache(
    workspace: Workspace,
    path: Path | str,
    remote: Remote,
    choice: Choice,
    *,
    replace: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Sends a cache, or what is chosen of it, to a remote, after checking every value of the cache.

    Returns the dictionary of ``push_items``, with ``kind``, ``name`` and ``images``.

    Raises:
        CacheError: there is no such cache, it is damaged, or nothing of the choice is committed.
        CacheMismatchError, ConfigError, StoreError, DiskSpaceError: see ``push_items``.
    """
    store, machine = open_store(path), Machine.current(workspace)
    several = holds_networks(store)
    names = [name for name, _ in store.files()] if several else []
    prefixes = part_prefixes(names, choice, several=several, where=str(path), load=partial(inner_store, store))
    parts = [_local_part(store, prefix, choice, machine) for prefix in prefixes]
    if not dry_run and not (checked := check_parts(path))["ok"]:
        fault = checked["damaged"][0]
        raise CacheError(
            f"{path} is damaged ({len(checked['damaged'])} faults; {fault['file']}: {fault['reason']}) and was not"
            f" pushed; repair it first: xd3d cache repair {shlex.quote(str(path))}"
        )
    wanted = _describe(parts, store, several=several, machine=machine)
    items = [item for part in parts for item in part.items] + (root_items() if several else [])
    card = cache_card(wanted.facts, name=wanted.name, place=remote.describe())
    check = machine.require_no_paths
    done = push_items(items, remote, wanted, card=card, check=check, replace=replace, dry_run=dry_run)
    left_out = max(part.left_out for part in parts)
    return {"kind": "cache", "name": wanted.name, "images": wanted.facts["images"], "left_out": left_out, **done}


def _local_part(whole: Store, prefix: str, choice: Choice, machine: Machine) -> Part:
    store = inner_store(whole, prefix)
    layout = load_layout(store)
    refuse_damaged_metadata(store, layout)
    log = CommitLog(store=store, layout=layout)
    local = StoreRemote(store)
    sizes = {
        array.shard_file(index): found[name]
        for index, found in log.sizes.items()
        for name, array in layout.arrays.items()
    }

    def data(name: str) -> Item:
        size = sizes.get(name, 0)
        return Item(name=prefix + name, size=size, read=partial(local.read, name, size))

    return cache_items(
        store,
        choice,
        prefix=prefix,
        there=log.sizes.keys(),
        data=data,
        failures=machine.text_without_paths,
        recipe=machine.without_paths,
    )


def _describe(parts: list[Part], store: Store, *, several: bool, machine: Machine) -> Manifest:
    """Returns the manifest of the chosen parts, without files."""
    folder = str(store.location).rstrip("/").rpartition("/")[2]
    first = parts[0].selection.layout
    sub = inner_store(store, parts[0].prefix)
    recipe = machine.without_paths(load_recipe(sub) or {})
    dataset = cache_dataset(sub, folder)
    extract = recipe.get("extract", {})
    name = plain_name(folder if several else f"{dataset}-{fingerprint_digest(first.fingerprint)[:12]}")
    networks = [part.prefix.split("/")[1] for part in parts if part.prefix.startswith("features/")]
    taps = {tap.name: None for part in parts for tap in part.selection.layout.taps}
    return Manifest(
        kind="cache",
        name=name,
        identity=f"networks {name}" if several else parts[0].selection.manifest,
        facts={
            "dataset": dataset,
            "model": ", ".join(networks) or str(extract.get("model", "not recorded")),
            "networks": networks,
            "taps": list(taps),
            "images": min(part.images for part in parts),
            "of": first.images,
            "profile": first.profile,
            "fingerprint": {} if several else dict(first.identity),
        },
    )

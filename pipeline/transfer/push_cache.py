"""Pushes caches, or chosen taps, networks and images of them."""

from functools import partial
from pathlib import Path
from typing import Any

from ...cache.commits import CommitLog
from ...cache.metadata import holds_networks, load_layout
from ...cache.networks import check_parts
from ...cache.recipe import load_recipe
from ...cache.stores import Store, open_store
from ...cache.stores.base import Files
from ...cache.verify import refuse_damaged_metadata
from ...errors import CacheError
from ...fingerprint import fingerprint_digest
from ..workspace import Workspace
from .cards import cache_card
from .content import Choice, Part, cache_items, inner_store, part_prefixes, root_items
from .copy import Item
from .manifest import Manifest
from .places import Place, StorePlace
from .portable import Machine
from .push import push_items

__all__ = ["cache_dataset", "push_cache"]


def cache_dataset(files: Files, name: str) -> str:
    """Returns the data set of a cache: that of its recipe, else the start of its ``name``."""
    recipe = load_recipe(files) or {}
    return str(recipe.get("dataset") or name.rpartition("-")[0] or name)


def push_cache(
    workspace: Workspace,
    path: Path | str,
    place: Place,
    choice: Choice,
    *,
    replace: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Sends a cache, or what is chosen of it, to a place, after checking every value of the cache.

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
            f" pushed; repair it first: xd3d cache repair {path}"
        )
    wanted = _describe(parts, store, several=several, machine=machine)
    items = [item for part in parts for item in part.items] + (root_items() if several else [])
    card = cache_card(wanted.facts, name=wanted.name, place=place.describe())
    done = push_items(items, place, wanted, card=card, check=machine.require_plain, replace=replace, dry_run=dry_run)
    left_out = max(part.left_out for part in parts)
    return {"kind": "cache", "name": wanted.name, "images": wanted.facts["images"], "left_out": left_out, **done}


def _local_part(whole: Store, prefix: str, choice: Choice, machine: Machine) -> Part:
    store = inner_store(whole, prefix)
    layout = load_layout(store)
    refuse_damaged_metadata(store, layout)
    log = CommitLog(store=store, layout=layout)
    place = StorePlace(store)
    sizes = {
        array.shard_file(index): found[name]
        for index, found in log.sizes.items()
        for name, array in layout.arrays.items()
    }

    def data(name: str) -> Item:
        size = sizes.get(name, 0)
        return Item(name=prefix + name, size=size, read=partial(place.read, name, size))

    return cache_items(
        store,
        choice,
        prefix=prefix,
        there=log.sizes.keys(),
        data=data,
        failures=machine.plain_text,
        recipe=machine.plain,
    )


def _describe(parts: list[Part], store: Store, *, several: bool, machine: Machine) -> Manifest:
    """Returns the manifest of the chosen parts, without files."""
    folder = str(store.location).rstrip("/").rpartition("/")[2]
    first = parts[0].selection.layout
    sub = inner_store(store, parts[0].prefix)
    recipe = machine.plain(load_recipe(sub) or {})
    dataset = cache_dataset(sub, folder)
    extract = recipe.get("extract", {})
    name = folder if several else f"{dataset}-{fingerprint_digest(first.fingerprint)[:12]}"
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
        files={},
    )

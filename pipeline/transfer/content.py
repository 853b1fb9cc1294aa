"""The files of a cache, or of a part of one, as they are pushed or pulled."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...cache.commits import FINISHED, Commit, encode_finished
from ...cache.export import Selection
from ...cache.layout import DONE
from ...cache.metadata import KEYS, load_identity, load_layout, manifest_checksum, networks_manifest
from ...cache.recipe import load_recipe
from ...cache.stores import Store, join_location, open_store
from ...cache.stores.base import Files
from ...cache.views import IDENTITY, view_keys
from ...errors import CacheError, ConfigError, StoreError, nearest
from .copy import Item
from .manifest import Manifest
from .remotes import Remote

__all__ = ["Choice", "Part", "Shared", "cache_items", "inner_store", "made_item", "part_prefixes", "root_items"]

_PART = re.compile(r"((?:features|agents)/[^/]+/)" + re.escape(KEYS))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to take of a cache: ``taps``, ``networks`` (of several), ``images`` (keys); None stands for all."""

    taps: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    images: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A chosen part of a cache: its folder with a slash (``prefix``; "" for a whole cache), shards and files."""

    prefix: str
    selection: Selection
    shards: Sequence[int]
    items: Sequence[Item]

    @property
    def images(self) -> int:
        """Number of images in the shards."""
        return sum(len(self.selection.layout.shard(index).rows) for index in self.shards)

    @property
    def left_out(self) -> int:
        """Number of images that were asked for and are not committed."""
        rows = self.selection.rows // self.selection.layout.images_per_shard
        return int((~np.isin(rows, self.shards)).sum())


class Shared:
    """The files of a manifest at a remote, as ``Files``: each is compared with its SHA-256 when it is read."""

    def __init__(self, remote: Remote, manifest: Manifest, prefix: str = "") -> None:
        self._remote = remote
        self._manifest = manifest
        self._prefix = prefix

    def describe(self, key: str = "") -> str:
        """Returns the full name of a file."""
        return self._remote.describe(self._prefix + key)

    def exists(self, key: str) -> bool:
        """Returns whether the manifest names the file."""
        return self._prefix + key in self._manifest.files

    def read(self, key: str) -> bytes:
        """Returns the content of a file.

        Raises:
            StoreError: it is not in the manifest, is damaged, or cannot be read.
        """
        return self.item(key).content()

    def item(self, key: str) -> Item:
        """Returns a file to copy.

        Raises:
            StoreError: it is not in the manifest.
        """
        name = self._prefix + key
        if name not in self._manifest.files:
            raise StoreError(f"{self._remote.describe()} has no {name} in its manifest; push again")
        size, digest = self._manifest.files[name]
        return Item(name=name, size=size, read=partial(self._remote.read, name, size), sha256=digest)


def part_prefixes(
    names: Iterable[str], choice: Choice, *, several: bool, where: str, load: Callable[[str], Files]
) -> list[str]:
    """Returns the prefixes of the chosen parts, such as ``features/dinov2-base/``; "" for a cache of one network.

    ``names``: the files of the cache; ``several``: whether it holds several networks; ``load`` opens the part with a
    prefix. With ``choice.networks`` they are the maps of these, and the agents that are grouped by no other network.

    Raises:
        ConfigError: taps are chosen of a cache of several networks, or networks of another one.
        CacheError: there is no such network.
    """
    if not several:
        if choice.networks is not None:
            raise ConfigError(f"{where} is a cache of one network; leave --networks out")
        return [""]
    if choice.taps is not None:
        raise ConfigError(
            f"{where} is a cache of several networks, whose agents need all taps; choose networks with --networks"
        )
    parts = sorted({match[1] for name in names if (match := _PART.fullmatch(name))})
    there = [part.split("/")[1] for part in parts if part.startswith("features/")]
    chosen = there if choice.networks is None else choice.networks
    for name in chosen:
        if name not in there:
            raise CacheError(f"The cache has no network '{name}': {nearest(name, there)}")
    agents = [part for part in parts if part.startswith("agents/")]
    kept = [part for part in agents if set(load_identity(load(part))["networks"]) <= set(chosen)]
    return [*(f"features/{name}/" for name in chosen), *kept]


def inner_store(store: Store, prefix: str) -> Store:
    """Returns the store of the part in ``prefix`` of a cache."""
    name = prefix.rstrip("/")
    return open_store(join_location(store.location, name)) if name else store


def root_items() -> list[Item]:
    """Returns the files above the parts of a cache of several networks."""
    return [made_item(name, content) for name, content in networks_manifest().items()]


def cache_items(
    files: Files,
    choice: Choice,
    *,
    prefix: str,
    there: Collection[int],
    data: Callable[[str], Item],
    failures: Callable[[str], str] = str,
    recipe: Callable[[Any], Any] | None = None,
) -> Part:
    """Returns what is chosen of a cache, or of the part in ``prefix`` of a cache of several networks.

    ``there``: the numbers of its committed shards; ``data`` returns the item of a file as it is stored. Commit records,
    metadata and recipe are made anew where the choice changes them, or where ``failures`` (applied to reasons of
    failures) and ``recipe`` are given.

    Raises:
        CacheError: there is no such cache, tap or image, or nothing of it is committed.
    """
    source = load_layout(files)
    images = choice.images
    if images is not None:
        images = view_keys(images, source.fingerprint.get("views", [IDENTITY]))
    selection = Selection.of(source, taps=choice.taps, images=images, where=files.describe())
    layout, shards = selection.layout, sorted(set(selection.shards) & set(there))
    if not shards:
        raise CacheError(f"None of the images that are asked for is committed in {files.describe()}")
    items = [data(array.shard_file(index)) for array in layout.arrays.values() for index in shards]
    as_stored = layout is source and recipe is None

    checksum = manifest_checksum(source)

    def record(index: int) -> bytes:
        return selection.record(Commit.load(files, source.shard(index), source, checksum), failures)

    for index in shards:
        stored = data(f"{DONE}/{index}.json")
        items.append(stored if as_stored else Item(name=stored.name, size=stored.size, read=partial(record, index)))
    found = load_recipe(files)
    for name, content in selection.metadata(recipe(found) if recipe and found else found).items():
        items.append(made_item(prefix + name, content))
    if len(shards) == layout.shard_count and files.exists(FINISHED):
        items.append(made_item(prefix + FINISHED, encode_finished(layout)))
    return Part(prefix=prefix, selection=selection, shards=shards, items=items)


def made_item(name: str, content: bytes) -> Item:
    """Returns an item whose content is given, not read from a store."""
    digest = hashlib.sha256(content).hexdigest()
    return Item(name=name, size=len(content), read=lambda: content, sha256=digest)

"""A cache of several networks: one folder whose parts are caches of their own, so that it grows network by network.

``features/<network>`` holds the maps of one network (``features/<network>/<tap>``), ``agents/<digest>`` the agents of
the images for one choice of networks and taps. Each part has its own fingerprint and commit records: adding a network
writes a new part and leaves the others as they are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from ..errors import CacheError
from ..files import unique_name
from ..fingerprint import fingerprint_digest
from .layout import DONE, STAGING
from .maintenance import repair_cache
from .metadata import MANIFEST, holds_networks, load_identity, networks_manifest, parse_json
from .reader import AllocateArray, FeatureReader
from .schema import GEOMETRY, ImageFeatures, TapSpec, features_of, named_arrays
from .stores import Location, Store, join_location, open_store
from .verify import cache_info, verify_cache
from .writer import write_files

__all__ = [
    "NetworksReader",
    "agents_part",
    "check_parts",
    "create_networks",
    "describe_networks",
    "network_part",
    "part_paths",
    "repair_parts",
]


def create_networks(path: Location) -> None:
    """Writes the groups above the parts, so that any Zarr reader opens the folder as one; does nothing if they exist.

    Several processes may call it at once, and it may be called again after an interruption.

    Raises:
        CacheError: the folder holds other things.
    """
    store = open_store(path)
    if holds_networks(store):
        return
    with store.translate_errors("opening it"):
        store.prepare(())
        foreign = sorted(store.listing("").keys() - {"features", "agents", STAGING, MANIFEST})
        if not foreign and _is_other_group(store):
            foreign = [MANIFEST]
        if foreign:
            raise CacheError(
                f"{store.describe()} holds {foreign[0]}, which is no part of a cache; choose another folder"
            )
        write_files(store, networks_manifest(), unique_name())


def _is_other_group(store: Store) -> bool:
    """Returns whether there is a manifest that is sound, and not that of a cache of several networks."""
    try:
        parse_json(store.read(MANIFEST), MANIFEST)
    except CacheError:  # missing or damaged
        return False
    return not holds_networks(store)


def network_part(path: Location, network: str) -> Location:
    """Returns the location of the maps of ``network``."""
    return join_location(path, f"features/{network}")


def agents_part(path: Location, fingerprint: Mapping[str, Any]) -> Location:
    """Returns the location of the agents with a fingerprint."""
    return join_location(path, f"agents/{fingerprint_digest(fingerprint)[:12]}")


def part_paths(path: Location) -> list[Location]:
    """Returns the location of every part; that of the cache itself if it has no parts.

    Raises:
        CacheError: the location is not supported, or its folders cannot be listed.
    """
    store = open_store(path)
    if not holds_networks(store):
        return [path]
    return [
        join_location(path, f"{folder}/{name}") for folder in ("features", "agents") for name in _parts(store, folder)
    ]


def _parts(store: Store, folder: str) -> list[str]:
    """Returns the names of the parts in ``folder``: entries with a manifest or commit records."""
    parts = [f"{folder}/{name}" for name in sorted(store.listing(folder))]
    found = [part for part in parts if store.exists(f"{part}/{MANIFEST}") or store.listing(f"{part}/{DONE}")]
    return [part.removeprefix(f"{folder}/") for part in found]


def describe_networks(path: Location) -> dict[str, Any]:
    """Describes a cache as ``cache_info`` does; of several networks, ``done`` counts the images that every part has.

    Such a cache also has ``networks``: name -> the facts of its part, and its ``taps``.

    Raises:
        CacheError: there is no cache in ``path``, or the manifest of a part is damaged.
    """
    store = open_store(path)
    if not holds_networks(store):
        return cache_info(path)
    parts = {_prefix(path, part).rstrip("/"): cache_info(part) for part in part_paths(path)}
    arrays = {
        f"{name}/{array.removeprefix(name.partition('/')[0] + '/')}": facts
        for name, part in parts.items()
        for array, facts in part["arrays"].items()
    }
    digests = {name: part["fingerprint"] for name, part in parts.items()}
    return {
        "cache": store.describe(),
        "fingerprint": fingerprint_digest(digests),
        "images": max((part["images"] for part in parts.values()), default=0),
        "done": min((part["done"] for part in parts.values()), default=0),
        "failed": max((part["failed"] for part in parts.values()), default=0),
        "bytes": sum(part["bytes"] for part in parts.values()),
        "bytes_per_image": sum(part["bytes_per_image"] for part in parts.values()),
        "networks": {
            name.partition("/")[2]: {
                **{key: part[key] for key in ("fingerprint", "images", "done", "failed", "bytes", "bytes_per_image")},
                "taps": load_identity(open_store(part["cache"]))["taps"],
            }
            for name, part in parts.items()
            if name.startswith("features/")
        },
        "arrays": arrays,
    }


def _prefix(path: Location, part: Location) -> str:
    """Returns the prefix of a part's files in the cache, ``features/NETWORK/`` say; "" for a cache without parts."""
    name = str(part)[len(str(path)) :].strip("/")
    return f"{name}/" if name else ""


def check_parts(path: Location, *, quick: bool = False) -> dict[str, Any]:
    """Checks every part of a cache as ``verify_cache`` does; the names of files begin with their part.

    Raises:
        CacheError: there is no cache in ``path``.
    """
    found = {_prefix(path, part): verify_cache(part, quick=quick) for part in part_paths(path)}
    return {
        "ok": all(part["ok"] for part in found.values()),
        "images": max((part["images"] for part in found.values() if part["images"] is not None), default=None),
        "checked": min((part["checked"] for part in found.values()), default=0),
        "damaged": [
            {**fault, "file": prefix + fault["file"]} for prefix, part in found.items() for fault in part["damaged"]
        ],
    }


def repair_parts(path: Location) -> dict[str, Any]:
    """Repairs every part of a cache as ``repair_cache`` does; the names of files begin with their part.

    Raises:
        CacheError, CacheMismatchError, UnfinishedUpgradeError: see ``repair_cache``.
    """
    found = {_prefix(path, part): repair_cache(part) for part in part_paths(path)}
    return {
        "dropped": sum(part["dropped"] for part in found.values()),
        "metadata": [prefix + file for prefix, part in found.items() for file in part["metadata"]],
    }


class NetworksReader:
    """Reads the maps of several networks and the agents of their images, like ``FeatureReader`` from one cache.

    Taps are called ``<network>/<tap>``. ``networks``: network -> expected fingerprint of its part. ``agents``: expected
    fingerprint of the agents' part, whose ``taps`` are read in that order. ``keys`` and ``whole_shards`` as in
    ``FeatureReader``.

    Raises:
        CacheError: a network or the agents are missing, or a part is damaged.
        CacheMismatchError: a part was made with other settings.
    """

    def __init__(
        self,
        path: Location,
        *,
        networks: Mapping[str, Mapping[str, Any]],
        agents: Mapping[str, Any],
        keys: Sequence[str] | None = None,
        whole_shards: bool = False,
    ) -> None:
        self.path = path
        there = {name: network_part(path, name) for name in _parts(open_store(path), "features")}
        for name in networks:
            if name not in there:
                raise CacheError(
                    f"The cache {path} has no features of the network '{name}' (it has {', '.join(there) or 'none'});"
                    " add them with: xd3d extract-features (the same --config and --set)"
                )
        open_part = partial(FeatureReader, keys=keys, whole_shards=whole_shards)
        self._networks = {name: open_part(there[name], expected=fields) for name, fields in networks.items()}
        part = agents_part(path, agents)
        if not open_store(part).exists(MANIFEST):
            raise CacheError(
                f"The cache {path} has no agents for the networks {', '.join(networks)} together; add them with:"
                " xd3d extract-features (the same --config and --set)"
            )
        self._agents = open_part(part, expected=agents)
        self._names = tuple(agents["taps"])
        self.taps: dict[str, TapSpec] = {name: self._spec(name) for name in self._names}  #: in this order
        self.grid: TapSpec | None = self._agents.grid  #: the tap whose grid the memberships use
        self.agents: int = self._agents.agents  #: number of agents per image
        self.views: tuple[str, ...] = self._agents.views  #: of each image, in the order of its rows

    def _spec(self, name: str) -> TapSpec:
        network, _, tap = name.rpartition("/")
        return replace(self._networks[network].taps[tap], name=name) if network else self._agents.taps[name]

    def require(self, rows: Sequence[int] | Int[np.ndarray, "images"]) -> None:
        """Checks that all ``rows`` can be read from every part; raises like ``FeatureReader.require``."""
        for reader in (*self._networks.values(), self._agents):
            reader.require(rows)

    def allocate(
        self,
        count: int,
        *,
        taps: Collection[str] | None = None,
        memberships: bool = True,
        empty: AllocateArray = np.empty,
    ) -> ImageFeatures:
        """Allocates uninitialised arrays for ``count`` images, as ``FeatureReader.allocate`` does."""
        wanted = self._names if taps is None else [name for name in self._names if name in taps]
        found = named_arrays(self._agents.allocate(count, taps=wanted, memberships=memberships, empty=empty))
        for network, reader in self._networks.items():
            own = [name.rpartition("/")[2] for name in wanted if name.rpartition("/")[0] == network]
            maps = named_arrays(reader.allocate(count, taps=own, memberships=False, empty=empty))
            found |= {
                name.replace("features/", f"features/{network}/", 1): values
                for name, values in maps.items()
                if name != GEOMETRY
            }
        batch = features_of(found)
        return replace(batch, maps={name: batch.maps[name] for name in self._names if name in batch.maps})

    def read(self, rows: Sequence[int] | Int[np.ndarray, "images"], out: ImageFeatures | None = None) -> ImageFeatures:
        """Returns the features of ``rows``, in the given order; raises like ``FeatureReader.read``."""
        target = self.allocate(len(rows)) if out is None else out
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, values in named_arrays(target).items():
            network = _network_of(name)
            parts.setdefault(network, {})[name.replace(f"features/{network}/", "features/")] = values
        for network, arrays in parts.items():
            reader = self._networks[network] if network else self._agents
            reader.read(rows, features_of(arrays))
        return target


def _network_of(name: str) -> str:
    """Returns the network whose part holds an array, or "" for the part of the agents."""
    folder, _, tap = name.removeprefix("scales/").partition("/")
    return tap.rpartition("/")[0] if folder == "features" else ""

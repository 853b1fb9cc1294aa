"""The layout of a cache: its arrays, its files, and the assignment of images to shards.

The layout depends on the taps, the number of agents and the images only, so writer, reader and maintenance derive the
same files from it. Format 2 adds two arrays to format 1: the memberships of the cells of the grouping grid.

A cache may be one part of a cache of several networks (``cache.network_parts``): the maps of one network, without
agents, or the agents of several networks, without maps. The arrays of a part lie at its top level, under the names of
the taps.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ..errors import CacheError, nearest
from .schema import ASSIGNMENT, GEOMETRY, MEMBERSHIP, MEMBERSHIPS, MEMBERSHIPS_PER_CELL, SCALES, TapSpec

__all__ = [
    "CACHE_FORMAT",
    "DONE",
    "FORMATS",
    "MANIFEST",
    "PROFILES",
    "STAGING",
    "UPGRADE",
    "ArrayLayout",
    "CacheLayout",
    "Shard",
]

CACHE_FORMAT = 2
FORMATS = (1, CACHE_FORMAT)  #: supported formats; the first has no memberships
PROFILES = ("exact", "compact")
MANIFEST = "zarr.json"  #: of the cache, in the metadata of its group
DONE = "done"  #: folder of the commit records
STAGING = "staging"  #: folder of incomplete shard files
UPGRADE = "upgrade"  #: folder of the commit records of an unfinished upgrade

_TAP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", re.ASCII)
_RESERVED = ("c", "geometry", "assignment", "membership", "zarr.json")
_PART_FILES = frozenset({"scales", "features", DONE, STAGING, "locks"})  #: what lies beside the arrays of a part
_LARGEST_ROW = 2**30  #: bytes; a bound on what damaged or hostile metadata can make a reader allocate


@dataclass(frozen=True)
class Shard:
    """A unit of writing: the images in rows ``first`` to ``last - 1``, always whole frames."""

    index: int
    first: int
    last: int

    @property
    def rows(self) -> range:
        """The image rows of the shard."""
        return range(self.first, self.last)


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """One array of the group: ``name`` such as ``features/up1``, and the shape and type of one image's row.

    ``path`` is its folder: ``name``; in a part of a cache, without the leading ``features/`` or ``agents/`` of that
    part.
    """

    name: str
    path: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dimensions: tuple[str, ...]  #: names of all axes, the image axis first

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, as it is stored without a compressor."""
        return prod(self.row_shape) * self.dtype.itemsize

    def shard_file(self, index: int) -> str:
        """Path of a shard's file inside the cache."""
        return "/".join([self.path, "c", str(index), *("0" for _ in self.row_shape)])


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """The metadata of a cache.

    ``grid`` is the tap whose grid the agents were computed on; the cache need not store that tap. It is None in
    format 1, which has no memberships, and without agents. ``part`` is "" for a whole cache, "features" for a part with
    maps only (0 ``agents``), and "agents" for a part with agents and the maps of uint8 taps.

    Raises:
        CacheError: a field is out of range or contradicts another one; the message names it.
    """

    taps: tuple[TapSpec, ...]
    agents: int
    image_keys: tuple[str, ...]
    images_per_frame: int
    images_per_shard: int
    fingerprint: Mapping[str, Any]
    profile: str = "exact"
    grid: TapSpec | None = None
    part: str = ""

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise CacheError(f"Unknown cache profile '{self.profile}': {nearest(self.profile, PROFILES)}")
        _check_taps(self.taps, self.part)
        if self.grid is not None:
            _check_taps((self.grid,), self.part)
            if any(tap.name == self.grid.name and tap != self.grid for tap in self.taps):
                raise CacheError(f"The grouping grid is that of tap {self.grid.name}, but of another size than its map")
        if not self.image_keys or len(set(self.image_keys)) != len(self.image_keys):
            raise CacheError("A cache needs at least one image, and every image key only once")
        for name, least in (
            ("agents", 0 if self.part == "features" else 1),
            ("images_per_frame", 1),
            ("images_per_shard", 1),
        ):
            if getattr(self, name) < least:
                raise CacheError(f"A cache needs {name} of at least {least}, found {getattr(self, name)}")
        if self.images % self.images_per_frame or self.images_per_shard % self.images_per_frame:
            raise CacheError(
                f"Frames of {self.images_per_frame} images do not divide {self.images} images into shards of "
                f"{self.images_per_shard}: every frame must lie in one shard"
            )
        for array in self.arrays.values():
            if array.row_bytes > _LARGEST_ROW:
                raise CacheError(f"A row of {array.name} would take {array.row_bytes} bytes, limit {_LARGEST_ROW}")

    @property
    def format(self) -> int:
        """The format of the cache, one of ``FORMATS``."""
        return FORMATS[self.grid is not None or bool(self.part)]

    @property
    def images(self) -> int:
        """Number of images, the length of every array's first axis."""
        return len(self.image_keys)

    @property
    def shard_count(self) -> int:
        """Number of shards of every array."""
        return -(-self.images // self.images_per_shard)

    @cached_property
    def computed(self) -> dict[str, ArrayLayout]:
        """Every array that stage one computes: ``features/<tap>``, ``agents/<tap>`` (not for uint8 taps), geometry.

        In format 2 also the memberships: agent indices (uint8 for up to 256 agents, else uint16) and weights.
        The profile ``exact`` stores exactly these arrays.
        """
        arrays: list[ArrayLayout] = []
        for tap in self.taps:
            shape = (tap.channels, tap.height, tap.width)
            if self.part != "agents" or tap.dtype == "uint8":
                arrays.append(self._array(f"features/{tap.name}", shape, tap.dtype, ("image", "channel", "y", "x")))
        if self.part == "features":
            return {array.name: array for array in arrays}
        for tap in self.taps:
            if tap.dtype == "float16":
                sizes = (self.agents, tap.channels)
                arrays.append(self._array(f"agents/{tap.name}", sizes, "float16", ("image", "agent", "channel")))
        arrays.append(self._array(GEOMETRY, (self.agents, 5), "float32", ("image", "agent", "measure")))
        if self.grid is not None:
            cells, axes = (MEMBERSHIPS_PER_CELL, self.grid.height, self.grid.width), ("image", "rank", "y", "x")
            arrays.append(self._array(ASSIGNMENT, cells, "uint8" if self.agents <= 256 else "uint16", axes))
            arrays.append(self._array(MEMBERSHIP, cells, "uint8", axes))
        return {array.name: array for array in arrays}

    @cached_property
    def arrays(self) -> dict[str, ArrayLayout]:
        """Every stored array by name; the profile ``compact`` stores float16 arrays as codes and an array of scales."""
        if self.profile == "exact":
            return self.computed
        arrays: list[ArrayLayout] = []
        for array in self.computed.values():
            if array.dtype == np.float16:
                channels = array.row_shape[array.dimensions.index("channel") - 1]
                arrays.append(replace(array, dtype=np.dtype(np.uint8)))
                arrays.append(self._array(SCALES + array.name, (2, channels), "float16", ("image", "scale", "channel")))
            else:
                arrays.append(array)
        return {array.name: array for array in arrays}

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the contents of a cache: the fingerprint and the profile."""
        return {"profile": self.profile, **self.fingerprint}

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image over all arrays, without shard indexes."""
        return sum(array.row_bytes for array in self.arrays.values())

    @property
    def shard_bytes_per_image(self) -> int:
        """Bytes of one image that count for the shard size: those of the profile ``exact`` and format 1."""
        return sum(array.row_bytes for array in self.computed.values() if array.name not in MEMBERSHIPS)

    def shard(self, index: int) -> Shard:
        """The shard with number ``index``."""
        first = index * self.images_per_shard
        return Shard(index, first, min(first + self.images_per_shard, self.images))

    def shards(self) -> Iterator[Shard]:
        """Every shard, in order."""
        return map(self.shard, range(self.shard_count))

    @staticmethod
    def shard_images(taps: Sequence[TapSpec], agents: int, images: int, images_per_frame: int, shard_bytes: int) -> int:
        """Returns the number of images in a shard of about ``shard_bytes``: whole frames, at least one.

        ``shard_bytes`` counts all arrays but memberships, because a whole shard is held in memory and can be lost in a
        crash. Sizes are always those of the profile ``exact`` and of format 1 without parts, so shards, and with them
        the batches of stage one, are the same in every profile and format.
        """
        one = CacheLayout(
            taps=tuple(replace(tap, name=tap.name.replace("/", ".")) for tap in taps),
            agents=max(1, agents),
            image_keys=("",),
            images_per_frame=1,
            images_per_shard=1,
            fingerprint={},
        )
        frames = max(1, shard_bytes // (one.shard_bytes_per_image * images_per_frame))
        return min(frames * images_per_frame, images)

    def _array(self, name: str, shape: tuple[int, ...], dtype: str, dimensions: tuple[str, ...]) -> ArrayLayout:
        kind = np.dtype(dtype).newbyteorder("<")
        path = name.removeprefix(f"{self.part}/")
        return ArrayLayout(name=name, path=path, row_shape=shape, dtype=kind, dimensions=dimensions)


def _check_taps(taps: tuple[TapSpec, ...], part: str) -> None:
    names = [tap.name for tap in taps]
    if not taps or len(set(names)) != len(names):
        raise CacheError(f"A cache needs at least one tap, and every tap only once; found {names}")
    for tap in taps:
        network, _, name = tap.name.rpartition("/") if part == "agents" else ("", "", tap.name)
        reserved = {*_RESERVED, *(_PART_FILES if part else ())}
        names = [name, network] if network else [name]
        if any(not _TAP_NAME.fullmatch(each) or each in reserved for each in names):
            raise CacheError(
                f"The tap name {tap.name!r} cannot name an array; use letters, digits and _ . : - "
                f"(not first), and none of {', '.join(_RESERVED)}"
            )
        sizes = (tap.channels, tap.height, tap.width)
        if min(sizes) < 1:
            raise CacheError(f"Tap {tap.name} has channels, height, width {sizes}; each must be at least 1")
        if not (0 < tap.extent[0] <= tap.height and 0 < tap.extent[1] <= tap.width):
            raise CacheError(
                f"Tap {tap.name} spans {tap.extent} cells of a {tap.height} x {tap.width} map; "
                "it must lie within the map"
            )
        if tap.dtype not in ("float16", "uint8"):
            raise CacheError(f"Tap {tap.name} has type {tap.dtype}; use float16 or uint8")

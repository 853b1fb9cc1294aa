"""Upgrade of a cache: the memberships of each image are computed from its cached maps and its picture.

The frozen network is not needed. Cached maps are rounded, so for some images k-means converges to other centres than
in stage one. The recomputed agents are compared with the stored ones; where they differ, each stored agent is matched
to the most similar recomputed one, and the cells are assigned to the matched centres.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8, UInt16
from torch import Tensor

from ...cache.layout import Shard
from ...cache.metadata import load_layout
from ...cache.reader import FeatureReader
from ...cache.schema import MEMBERSHIPS_PER_CELL, TapSpec
from ...cache.stores import open_store
from ...cache.upgrade import CacheUpgrade, finish_upgrade
from ...errors import CacheError, CacheMismatchError, DataError
from ...processes import select_device
from ...progress import progress
from ..datasets.index import FrameIndex
from .agents import EMPTY_MASS, AgentMaker
from .encode import as_indices, decoded, strongest_memberships
from .images import PictureSource
from .job import require_space, stored_bytes
from .settings import AgentSettings

__all__ = ["SAME_AGENTS", "UpgradeSummary", "upgrade_cache"]

#: Distance of a recomputed agent from the stored one, in lengths of the stored one, up to which the two are the same;
#: 8 bits round maps and agents more than float16 does.
SAME_AGENTS = {"exact": 0.02, "compact": 0.1}
GPU_BATCH = 8  #: images grouped together on a GPU; on a CPU one, as stage one does there


@dataclass(frozen=True, kw_only=True)
class UpgradeSummary:
    """What an upgrade did: ``upgraded`` images got memberships in this call, ``bytes`` of them on the disk.

    ``recomputed`` counts those of them whose cells had to be assigned to the stored agents; ``images`` are all of the
    cache.
    """

    cache: str
    format: int
    images: int
    upgraded: int
    bytes: int
    seconds: float
    recomputed: int


def upgrade_cache(path: Path | str, *, index: Callable[[], FrameIndex], device: str = "auto") -> UpgradeSummary:
    """Adds memberships to the cache of format 1 in ``path``, which then has format 2; format 2 is left unchanged.

    ``index`` opens the index of its data set, and is called only if the agents were also grouped by colour. ``device``
    is as in ``select_device``. Uncommitted shards stay uncommitted. The same call resumes after an interruption at any
    moment.

    Raises:
        CacheError: there is no cache, it is damaged or an export of fewer taps, or a writer uses it.
        CacheMismatchError: the index is not the one that the cache was made of.
        DataError: a picture cannot be decoded.
        DiskSpaceError: the disk has no room for the memberships.
        BackendError: the device is "cuda", and there is none.
    """
    start, upgraded, written, recomputed = time.monotonic(), 0, 0, 0
    if not finish_upgrade(path):
        reader = FeatureReader(path)
        regrouping = _Regrouping(reader, index, device)
        with CacheUpgrade.open(path, grid=regrouping.grid) as upgrade:
            reader.refresh()
            _check_disk(path, upgrade)
            committed = int(reader.available.sum())
            upgraded = sum(int(reader.available[shard.first : shard.last].sum()) for shard in upgrade.pending)
            with progress("Upgrading", committed, "image", done=committed - upgraded) as bar:
                for shard in list(upgrade.pending):
                    assignment, membership, differing = regrouping.memberships(shard, bar.update)
                    written += upgrade.add(shard, assignment, membership)
                    recomputed += differing
            upgrade.switch()
    layout = load_layout(open_store(path))
    return UpgradeSummary(
        cache=open_store(path).describe(),
        format=layout.format,
        images=layout.images,
        upgraded=upgraded,
        bytes=written,
        seconds=time.monotonic() - start,
        recomputed=recomputed,
    )


def _check_disk(path: Path | str, upgrade: CacheUpgrade) -> None:
    with_them, without = upgrade.layout, replace(upgrade.layout, grid=None)
    needed = stored_bytes(with_them, upgrade.pending) - stored_bytes(without, upgrade.pending)
    require_space(path, needed, "memberships", "free some space and run the same command again")


class _Regrouping:
    """Groups the images of a cache again, from what it stores of them."""

    def __init__(self, reader: FeatureReader, index: Callable[[], FrameIndex], device: str) -> None:
        self._reader = reader
        layout, fields = reader.layout, reader.fingerprint
        if "exported_from" in fields:
            raise CacheError(
                f"The cache {reader.path} is an export of some taps, and its agents were made of all; upgrade the cache"
                " it was exported from, then export again"
            )
        self._device = select_device(device)
        try:
            settings = AgentSettings.model_validate(fields["agents"])
            self._image_size = int(fields["image_size"][0]), int(fields["image_size"][1])
            self._maker = AgentMaker(
                settings=settings, specs=reader.taps, image_size=self._image_size, device=self._device
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CacheError(
                f"The cache {reader.path} does not say how its agents were made ({error}); extract the features again"
            ) from error
        self._bound = SAME_AGENTS[layout.profile]
        self._batch = 1 if self._device.type == "cpu" else GPU_BATCH
        self._pictures = None if settings.assign == "features" else self._open_pictures(index())
        self._places: dict[str, int] = {}
        if self._pictures is not None:
            keys = self._pictures.keys(range(len(self._pictures)))
            self._places = {key: row for row, key in enumerate(keys)}

    @property
    def grid(self) -> TapSpec:
        """The tap on whose grid the cells are grouped."""
        return self._maker.grid

    def memberships(
        self, shard: Shard, report: Callable[[int], object]
    ) -> tuple[
        UInt8[np.ndarray, "images 4 h w"] | UInt16[np.ndarray, "images 4 h w"], UInt8[np.ndarray, "images 4 h w"], int
    ]:
        """Indices and weights for ``shard``, zeros for failed images, and how many were assigned to stored agents.

        ``report`` is called with the number of images of each batch.
        """
        shape = (len(shard.rows), MEMBERSHIPS_PER_CELL, self.grid.height, self.grid.width)
        assignment = np.zeros(shape, np.uint8 if self._reader.agents <= 256 else np.uint16)
        membership, differing = np.zeros(shape, np.uint8), 0
        available = self._reader.available
        rows = [row for row in shard.rows if available[row]]
        for first in range(0, len(rows), self._batch):
            chosen = rows[first : first + self._batch]
            places = np.array(chosen) - shard.first
            assignment[places], membership[places], others = self._group(chosen)
            differing += others
            report(len(chosen))
        return assignment, membership, differing

    @torch.inference_mode()
    def _group(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, int]:
        wanted = self._reader.allocate(len(rows), taps=tuple(self._maker.specs), memberships=False)
        features = self._reader.read(rows, wanted)
        taps, device = self._maker.specs, self._device
        maps = {name: decoded(features, "features", name, device) for name in taps}
        queries = {name: decoded(features, "agents", name, device) for name in taps}
        geometry = torch.from_numpy(features.geometry).to(self._device)
        pictures = torch.from_numpy(self._read_pictures(rows)).to(self._device)
        found = self._maker(maps, pictures)
        assignment, empty = found.assignment, geometry[:, :, 0] < EMPTY_MASS
        away = [_relative(found.queries[name] - stored, stored) for name, stored in queries.items()]
        differing = torch.stack(away).amax(0).masked_fill(empty, 0.0).amax(1) > self._bound
        for image in differing.nonzero().flatten():
            one = slice(int(image), int(image) + 1)
            own, new, stored = (
                {name: values[one] for name, values in part.items()} for part in (maps, found.queries, queries)
            )
            assignment[one] = self._assigned_to_stored(own, new, stored, empty[one], pictures[one])
        index, weight = strongest_memberships(assignment)
        return as_indices(index.cpu()), weight.cpu().numpy(), int(differing.sum())

    def _assigned_to_stored(
        self,
        maps: Mapping[str, Tensor],
        found: Mapping[str, Float32[Tensor, "1 agents _channels"]],
        stored: Mapping[str, Float32[Tensor, "1 agents _channels"]],
        empty: Bool[Tensor, "1 agents"],
        pictures: UInt8[Tensor, "1 3 _image_height _image_width"],
    ) -> Float32[Tensor, "1 agents height width"]:
        """Memberships in the stored agents of an image, each in the place of the found one that is most like it."""
        pixels = self._maker.pixel_vectors(maps, pictures)
        centres = self._maker.centres(pixels)
        away = [_relative(found[name][:, None] - stored[name][:, :, None], stored[name][:, :, None]) for name in stored]
        nearest = torch.stack(away).amax(0).argmin(dim=2, keepdim=True)
        cells = self._maker.assign(pixels, centres.gather(1, nearest.expand_as(centres)))
        cells = cells.masked_fill(empty[:, :, None], 0.0)
        cells /= cells.sum(1, keepdim=True).clamp_min(EMPTY_MASS)
        return cells.reshape(*cells.shape[:2], self.grid.height, self.grid.width)

    def _open_pictures(self, index: FrameIndex) -> PictureSource:
        if index.digest != (made_of := self._reader.fingerprint.get("index")):
            raise CacheMismatchError(
                f"The cache {self._reader.path} was made of another index of {index.dataset} (digest {made_of}, found"
                f" {index.digest}); prepare the data set again as it was"
            )
        return PictureSource(
            index=index,
            image_size=self._image_size,
            views=self._reader.views,
            decoding="scaled" if self._reader.fingerprint.get("decoding") == "scaled" else "full",
        )

    def _read_pictures(self, rows: Sequence[int]) -> UInt8[np.ndarray, "images 3 height width"]:
        """The pictures of ``rows``; black ones where colours have no part in the grouping."""
        if self._pictures is None:
            return np.zeros((len(rows), 3, *self._image_size), np.uint8)
        pictures, failures = self._pictures.read([self._places[self._reader.image_keys[row]] for row in rows])
        if failures:
            raise DataError("; ".join(failures.values()))
        return pictures


def _relative(difference: Float32[Tensor, "..."], stored: Float32[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """Length of ``difference`` over that of ``stored``, along the last axis."""
    return difference.norm(dim=-1) / stored.norm(dim=-1).clamp_min(1e-12)

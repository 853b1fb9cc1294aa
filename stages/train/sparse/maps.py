"""Kernel maps: the pairs of input and output voxels of each cell of a convolution kernel.

They depend only on coordinates, so they are built once per batch (for example by the loader) and shared by all layers.
Voxels are found by binary search in sorted int64 keys, without hashing, so the maps are deterministic.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Int, Int32, Int64
from torch import Tensor

from ....errors import BackendError
from ..ragged import Ragged

__all__ = [
    "KernelMap",
    "KernelMaps",
    "Segments",
    "Shape",
    "build_kernel_maps",
    "strided_map",
    "submanifold_map",
    "voxel_coordinates",
    "voxel_keys",
]

Shape = tuple[int, int, int]
Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Pairs grouped by row: row ``r`` sums the pairs ``order[starts[r]:starts[r + 1]]``."""

    order: Int64[Tensor, "pairs"]
    starts: Int64[Tensor, "rows_and_end"]


@dataclass(frozen=True, kw_only=True)
class KernelMap:
    """Pairs (input row, output row), sorted by kernel cell; ``counts[k]`` of them belong to cell ``k`` (x slowest).

    It includes the coordinates of the input and output rows.
    """

    source: Int64[Tensor, "pairs"]
    target: Int64[Tensor, "pairs"]
    counts: tuple[int, ...]
    by_target: Segments
    by_source: Segments
    source_indices: Int32[Tensor, "inputs 4"]
    source_shape: Shape
    target_indices: Int32[Tensor, "outputs 4"]
    target_shape: Shape


class KernelMaps:
    """Cache of the kernel maps of one set of voxels, filled on demand and shared by all layers.

    ``indices`` are the finest voxels, int32 [N, 4] as (sample, x, y, z). Level ``l`` are the voxels after ``l``
    halvings of the resolution. Entries have the key (kind, level, kernel edge); a backend may add its own kinds.

    Raises:
        BackendError: there is no voxel, or coordinates are not int32, are repeated, or are outside ``spatial_shape`` or
            ``batch_size``.
    """

    def __init__(self, indices: Int[Tensor, "voxels 4"], spatial_shape: Shape, batch_size: int) -> None:
        _check_indices(indices, spatial_shape, batch_size)
        self.indices = indices.contiguous()
        self.spatial_shape = spatial_shape
        self.batch_size = batch_size
        self._entries: dict[tuple[str, int, int], object] = {}

    def entry(self, kind: str, level: int, kernel: int, build: Callable[[], Entry]) -> Entry:
        """Returns the stored entry, which ``build`` makes on first use."""
        key = (kind, level, kernel)
        if key not in self._entries:
            self._entries[key] = build()
        return cast("Entry", self._entries[key])

    def submanifold(
        self, level: int, kernel: int, indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape
    ) -> KernelMap:
        """Returns the map of a submanifold convolution over the voxels of ``level``."""
        return self.entry("submanifold", level, kernel, lambda: submanifold_map(indices, spatial_shape, kernel))

    def strided(self, level: int, indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape) -> KernelMap:
        """Returns the map from the voxels of ``level`` to those of ``level + 1``."""
        return self.entry("strided", level, 2, lambda: strided_map(indices, spatial_shape))

    def entry_of_down(self, kind: str, level: int) -> Any:
        """Returns the entry that the strided convolution from ``level - 1`` to ``level`` stored.

        Raises:
            BackendError: there was no such convolution on these voxels, so there is nothing to invert.
        """
        key = (kind, level - 1, 2)
        if key not in self._entries:
            raise BackendError(
                f"An inverse convolution at level {level} has no strided convolution to undo; use DownConv3d on the "
                "same sparse tensor, with the same backend, first"
            )
        return self._entries[key]

    def with_entry(self, kind: str, level: int, kernel: int, value: object) -> "KernelMaps":
        """Returns a copy with one more entry."""
        extended = copy(self)
        extended._entries = {**self._entries, (kind, level, kernel): value}
        return extended

    def mapped(self, function: Callable[[Any], Any]) -> "KernelMaps":
        """Returns a copy with ``function`` applied to indices and entries; entries of spconv are dropped."""
        found = copy(self)
        found.indices = function(self.indices)
        kept = {key: entry for key, entry in self._entries.items() if isinstance(entry, (KernelMap, Ragged))}
        found._entries = {key: function(entry) for key, entry in kept.items()}
        return found

    def layout(self, level: int, sample: Int32[Tensor, "voxels"]) -> Ragged:
        """Returns the padded layout of the voxels of ``level``, whose sample indices are ``sample``."""
        return self.entry("layout", level, 0, lambda: Ragged.of(sample, self.batch_size))


def build_kernel_maps(
    indices: Int[Tensor, "voxels 4"],
    spatial_shape: Shape,
    *,
    batch_size: int,
    levels: int = 4,
    stem_kernel: int = 5,
    layouts: bool = False,
) -> KernelMaps:
    """Builds all kernel maps of a U-Net with ``levels`` halvings before its forward pass, and ``layouts`` if asked.

    It is thread-safe. ``SparseTensor.create`` takes the result, or a ``KernelMaps`` whose maps are built on demand.

    Raises:
        BackendError: coordinates are not int32, are repeated, or are outside ``spatial_shape`` or ``batch_size``.
    """
    maps = KernelMaps(indices, spatial_shape, batch_size)
    indices = maps.indices
    maps.submanifold(0, stem_kernel, indices, spatial_shape)
    for level in range(levels + 1):
        maps.submanifold(level, 3, indices, spatial_shape)
        if layouts:
            maps.layout(level, indices[:, 0])
        if level < levels:
            coarser = maps.strided(level, indices, spatial_shape)
            indices, spatial_shape = coarser.target_indices, coarser.target_shape
    return maps


def _check_indices(indices: Int[Tensor, "voxels 4"], spatial_shape: Shape, batch_size: int) -> None:
    """Rejects coordinates for which a sparse convolution would be silently wrong.

    Raises:
        BackendError: they are not int32, empty, outside ``spatial_shape`` or ``batch_size``, or a voxel is repeated.
    """
    if indices.dtype != torch.int32:
        raise BackendError(f"Voxel indices are int32, as spconv reads them; found {indices.dtype}: call .int() on them")
    if not len(indices):
        raise BackendError("A sparse tensor needs at least one voxel, found none; leave empty samples out")
    limit = torch.tensor([batch_size, *spatial_shape], device=indices.device)
    outside = ((indices < 0) | (indices >= limit)).any(1)
    if outside.any():
        raise BackendError(
            f"{int(outside.sum())} of {len(indices)} voxels lie outside batch_size={batch_size}, "
            f"spatial_shape={spatial_shape}; the first is (sample, x, y, z) = {indices[outside][0].tolist()}"
        )
    keys = voxel_keys(indices, spatial_shape).sort().values
    repeated = int((keys[1:] == keys[:-1]).sum())
    if repeated:
        raise BackendError(
            f"{repeated} of {len(indices)} voxels repeat the coordinates of another; merge points with voxelise first"
        )


def submanifold_map(indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape, kernel: int) -> KernelMap:
    """Returns pairs of voxels within ``kernel // 2``; cell ``k`` reads the voxel at ``o + cell(k) - kernel // 2``.

    ``indices`` are unique voxels, each (sample, x, y, z) with x, y and z inside ``spatial_shape``.
    """
    cell, source, target = _earlier_neighbours(indices, spatial_shape, kernel)
    cells, rows = kernel**3, torch.arange(len(indices), device=indices.device)
    cell = torch.cat([cell, torch.full_like(rows, cells // 2), cells - 1 - cell])  # cells k and K - 1 - k are mirrored
    order = cell.argsort(stable=True)
    source, target = torch.cat([source, rows, target])[order], torch.cat([target, rows, source])[order]
    by_target = _segments(target, len(indices))
    return KernelMap(
        source=source,
        target=target,
        counts=tuple(torch.bincount(cell, minlength=cells).tolist()),
        by_target=by_target,
        by_source=Segments(order=source.argsort(stable=True), starts=by_target.starts),  # the pairs are symmetric
        source_indices=indices,
        source_shape=spatial_shape,
        target_indices=indices,
        target_shape=spatial_shape,
    )


def strided_map(indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape) -> KernelMap:
    """Returns the pairs (voxel, coarse voxel that contains it); odd extents are rounded up, so no plane is lost.

    ``indices`` are unique voxels, each (sample, x, y, z); the coarse voxels have the same columns and are sorted.
    """
    coarse_shape = (-(-spatial_shape[0] // 2), -(-spatial_shape[1] // 2), -(-spatial_shape[2] // 2))
    parents = torch.cat([indices[:, :1], indices[:, 1:] // 2], 1)
    keys, parent = torch.unique(voxel_keys(parents, coarse_shape), return_inverse=True)
    halves = indices[:, 1:].long() % 2
    cell = (halves[:, 0] * 2 + halves[:, 1]) * 2 + halves[:, 2]
    source = cell.argsort(stable=True)
    target = parent[source]
    return KernelMap(
        source=source,
        target=target,
        counts=tuple(torch.bincount(cell, minlength=8).tolist()),
        by_target=_segments(target, len(keys)),
        by_source=_segments(source, len(indices)),
        source_indices=indices,
        source_shape=spatial_shape,
        target_indices=voxel_coordinates(keys, coarse_shape),
        target_shape=coarse_shape,
    )


def voxel_keys(indices: Int[Tensor, "voxels 4"], shape: Shape, margin: int = 0) -> Int64[Tensor, "voxels"]:
    """Returns an int64 key per voxel (sample, x, y, z), which sorts voxels in the order of these columns.

    ``margin`` empty cells on every side keep neighbours' keys from wrapping. A key has 63 bits: the grids of all
    samples, with their margins, must have fewer than 2^63 cells.
    """
    sample, x, y, z = indices.long().unbind(1)
    across = [extent + 2 * margin for extent in shape]
    return ((sample * across[0] + x + margin) * across[1] + y + margin) * across[2] + z + margin


def voxel_coordinates(keys: Int64[Tensor, "voxels"], shape: Shape) -> Int32[Tensor, "voxels 4"]:
    """Inverts ``voxel_keys`` without a margin."""
    rest, z = keys // shape[2], keys % shape[2]
    rest, y = rest // shape[1], rest % shape[1]
    return torch.stack([rest // shape[0], rest % shape[0], y, z], 1).int()


def _earlier_neighbours(
    indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape, kernel: int
) -> tuple[Int64[Tensor, "found"], Int64[Tensor, "found"], Int64[Tensor, "found"]]:
    """Returns (cell, input row, output row) of every pair whose cell precedes the kernel's centre.

    The ``kernel`` cells along z are adjacent in the sorted keys, so one search finds all of them.
    """
    reach = kernel // 2
    keys, order = voxel_keys(indices, spatial_shape, reach).sort()
    across_y, across_z = (extent + 2 * reach for extent in spatial_shape[1:])
    columns = product(range(-reach, reach + 1), repeat=2)
    starts = [(dx * across_y + dy) * across_z - reach for dx, dy in columns if (dx, dy) <= (0, 0)]
    lowest = keys + torch.tensor(starts, device=keys.device)[:, None]  # key of each column's first cell
    position = torch.searchsorted(keys, lowest)
    keys = torch.cat([keys, keys.new_full((kernel,), torch.iinfo(keys.dtype).max)])
    found = []
    for _ in range(kernel):
        along = keys[position] - lowest
        column, voxel = (along < kernel).nonzero(as_tuple=True)
        found.append((column * kernel + along[column, voxel], order[position[column, voxel]], order[voxel]))
        position = position + 1
    cell, source, target = (torch.cat(parts) for parts in zip(*found, strict=True))
    before = cell < kernel**3 // 2
    return cell[before], source[before], target[before]


def _segments(rows: Int64[Tensor, "pairs"], total: int) -> Segments:
    """Groups pairs by row, in their order within a row."""
    counts = torch.bincount(rows, minlength=total)
    return Segments(order=rows.argsort(stable=True), starts=torch.cat([counts.new_zeros(1), counts.cumsum(0)]))

"""Kernel maps: which input voxel meets which output voxel under which cell of a kernel.

They depend on coordinates alone, so they are built once for a batch (by the loader, if it likes) and shared by every
layer. A voxel is found by binary search in sorted int64 keys; nothing hashes, so equal input gives equal maps.
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
]

Shape = tuple[int, int, int]
Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Pairs grouped by the row they add to: row ``r`` sums the pairs ``order[starts[r]:starts[r + 1]]``."""

    order: Int64[Tensor, "pairs"]
    starts: Int64[Tensor, "rows_and_end"]


@dataclass(frozen=True, kw_only=True)
class KernelMap:
    """Pairs (input row, output row), sorted by kernel cell; ``counts[k]`` of them belong to cell ``k`` (x slowest).

    The coordinates of the input and of the output rows come with it.
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
    """All that is known of one set of voxels, filled on demand and shared by the layers that see them.

    ``indices`` are the finest voxels, int32 [N, 4] as (sample, x, y, z). Level ``l`` is those voxels after ``l``
    halvings. Entries are addressed by (kind, level, kernel edge); a backend keeps its own kinds.
    """

    def __init__(self, indices: Int[Tensor, "voxels 4"], spatial_shape: Shape, batch_size: int) -> None:
        _check_indices(indices, spatial_shape, batch_size)
        self.indices = indices.contiguous()
        self.spatial_shape = spatial_shape
        self.batch_size = batch_size
        self._entries: dict[tuple[str, int, int], object] = {}

    def entry(self, kind: str, level: int, kernel: int, build: Callable[[], Entry]) -> Entry:
        """Return the stored entry, made by ``build`` on its first use."""
        key = (kind, level, kernel)
        if key not in self._entries:
            self._entries[key] = build()
        return cast("Entry", self._entries[key])

    def submanifold(
        self, level: int, kernel: int, indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape
    ) -> KernelMap:
        """The map of a submanifold convolution over the voxels of ``level``."""
        return self.entry("submanifold", level, kernel, lambda: submanifold_map(indices, spatial_shape, kernel))

    def strided(self, level: int, indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape) -> KernelMap:
        """The map from the voxels of ``level`` to those of ``level + 1``."""
        return self.entry("strided", level, 2, lambda: strided_map(indices, spatial_shape))

    def left_by_down(self, kind: str, level: int) -> Any:
        """The entry that the strided convolution from ``level - 1`` to ``level`` left behind.

        Raises:
            BackendError: there was none on these voxels, so there is nothing to invert.
        """
        key = (kind, level - 1, 2)
        if key not in self._entries:
            raise BackendError(
                f"An inverse convolution at level {level} has no strided convolution to undo; use DownConv3d on the "
                "same sparse tensor, with the same backend, first"
            )
        return self._entries[key]

    def having(self, kind: str, level: int, kernel: int, value: object) -> "KernelMaps":
        """A copy with one more entry; these maps stay as they are."""
        extended = copy(self)
        extended._entries = {**self._entries, (kind, level, kernel): value}
        return extended

    def mapped(self, function: Callable[[Any], Any]) -> "KernelMaps":
        """A copy with ``function`` of its indices and entries; those of spconv, which makes its own, are left out."""
        found = copy(self)
        found.indices = function(self.indices)
        kept = {key: entry for key, entry in self._entries.items() if isinstance(entry, (KernelMap, Ragged))}
        found._entries = {key: function(entry) for key, entry in kept.items()}
        return found

    def layout(self, level: int, sample: Int32[Tensor, "voxels"]) -> Ragged:
        """How the voxels of ``level``, which belong to the samples ``sample``, lie in a padded batch."""
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
    """Build every kernel map of a U-Net with ``levels`` halvings, ahead of its forward pass; ``layouts`` too if asked.

    Safe in a loader's thread: it reads its arguments and nothing else. Hand the result to ``SparseTensor.create`` or
    leave it out; the network computes the same either way.

    Raises:
        BackendError: coordinates are not int32, are repeated, or lie outside ``spatial_shape`` or ``batch_size``.
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
    """Refuse coordinates that a sparse convolution would silently misread.

    Raises:
        BackendError: not int32, none at all, outside ``spatial_shape`` or ``batch_size``, or the same voxel twice.
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
    keys = _keys(indices, spatial_shape, 0).sort().values
    repeated = int((keys[1:] == keys[:-1]).sum())
    if repeated:
        raise BackendError(
            f"{repeated} of {len(indices)} voxels repeat the coordinates of another; merge points with voxelise first"
        )


def submanifold_map(indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape, kernel: int) -> KernelMap:
    """Pairs of voxels at most ``kernel // 2`` apart; cell ``k`` reads the voxel at ``o + cell(k) - kernel // 2``."""
    cell, source, target = _earlier_neighbours(indices, spatial_shape, kernel)
    cells, own = kernel**3, torch.arange(len(indices), device=indices.device)
    cell = torch.cat([cell, torch.full_like(own, cells // 2), cells - 1 - cell])  # cells k and K - 1 - k are mirrored
    order = cell.argsort(stable=True)
    source, target = torch.cat([source, own, target])[order], torch.cat([target, own, source])[order]
    by_target = _segments(target, len(indices))
    return KernelMap(
        source=source,
        target=target,
        counts=tuple(torch.bincount(cell, minlength=cells).tolist()),
        by_target=by_target,
        by_source=Segments(order=source.argsort(stable=True), starts=by_target.starts),  # if a meets b, b meets a
        source_indices=indices,
        source_shape=spatial_shape,
        target_indices=indices,
        target_shape=spatial_shape,
    )


def strided_map(indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape) -> KernelMap:
    """Pairs (voxel, the coarse voxel of 2 x 2 x 2 that holds it); odd extents are rounded up, so no plane is lost."""
    coarse_shape = (-(-spatial_shape[0] // 2), -(-spatial_shape[1] // 2), -(-spatial_shape[2] // 2))
    parents = torch.cat([indices[:, :1], indices[:, 1:] // 2], 1)
    keys, parent = torch.unique(_keys(parents, coarse_shape, 0), return_inverse=True)
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
        target_indices=_coordinates(keys, coarse_shape),
        target_shape=coarse_shape,
    )


def _keys(indices: Int32[Tensor, "voxels 4"], shape: Shape, margin: int) -> Int64[Tensor, "voxels"]:
    """One int64 a voxel; ``margin`` empty cells on every side keep a neighbour's key from wrapping around."""
    sample, x, y, z = indices.long().unbind(1)
    across = [extent + 2 * margin for extent in shape]
    return ((sample * across[0] + x + margin) * across[1] + y + margin) * across[2] + z + margin


def _coordinates(keys: Int64[Tensor, "voxels"], shape: Shape) -> Int32[Tensor, "voxels 4"]:
    """Undo ``_keys`` without a margin."""
    rest, z = keys // shape[2], keys % shape[2]
    rest, y = rest // shape[1], rest % shape[1]
    return torch.stack([rest // shape[0], rest % shape[0], y, z], 1).int()


def _earlier_neighbours(
    indices: Int32[Tensor, "voxels 4"], spatial_shape: Shape, kernel: int
) -> tuple[Int64[Tensor, "found"], Int64[Tensor, "found"], Int64[Tensor, "found"]]:
    """(cell, input row, output row) of every pair whose cell comes before the kernel's centre.

    The ``kernel`` cells along z are neighbours in the sorted keys, so one search serves them all.
    """
    reach = kernel // 2
    keys, order = _keys(indices, spatial_shape, reach).sort()
    across_y, across_z = (extent + 2 * reach for extent in spatial_shape[1:])
    columns = product(range(-reach, reach + 1), repeat=2)
    starts = [(dx * across_y + dy) * across_z - reach for dx, dy in columns if (dx, dy) <= (0, 0)]
    lowest = keys + torch.tensor(starts, device=keys.device)[:, None]  # key of each column's first cell
    place = torch.searchsorted(keys, lowest)
    keys = torch.cat([keys, keys.new_full((kernel,), torch.iinfo(keys.dtype).max)])
    found = []
    for _ in range(kernel):
        along = keys[place] - lowest
        column, voxel = (along < kernel).nonzero(as_tuple=True)
        found.append((column * kernel + along[column, voxel], order[place[column, voxel]], order[voxel]))
        place = place + 1
    cell, source, target = (torch.cat(parts) for parts in zip(*found, strict=True))
    before = cell < kernel**3 // 2
    return cell[before], source[before], target[before]


def _starts(counts: Int64[Tensor, "rows"]) -> Int64[Tensor, "rows_and_end"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _segments(rows: Int64[Tensor, "pairs"], total: int) -> Segments:
    """Group pairs by the row they name; within a row they keep their order."""
    return Segments(order=rows.argsort(stable=True), starts=_starts(torch.bincount(rows, minlength=total)))

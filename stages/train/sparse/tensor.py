"""The sparse tensor: features of occupied voxels, with shared kernel maps."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from ....errors import BackendError
from ..ragged import Ragged
from .maps import KernelMaps, Shape

__all__ = ["SparseTensor"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseTensor:
    """Features of the N voxels of a batch; ``create`` makes a checked one, from which layers derive others.

    ``indices`` int32 [N, 4] are (sample, x, y, z) in voxels of ``level`` (edge doubled ``level`` times),
    ``0 <= x < spatial_shape[0]`` and so on; ``maps`` is shared by all tensors derived from one ``create``.
    """

    features: Float[Tensor, "voxels channels"]
    indices: Int32[Tensor, "voxels 4"]
    spatial_shape: Shape
    batch_size: int
    maps: KernelMaps
    level: int = 0

    @classmethod
    def create(
        cls,
        *,
        features: Float[Tensor, "voxels channels"],
        indices: Int[Tensor, "voxels 4"],
        spatial_shape: Shape,
        batch_size: int,
        maps: KernelMaps | None = None,
    ) -> "SparseTensor":
        """Creates a sparse tensor after checking its coordinates.

        ``maps`` are the result of ``build_kernel_maps`` for the same coordinates; otherwise maps are built on demand.

        Raises:
            BackendError: coordinates are not int32, repeated, out of range, or not those of ``maps``; or the parts are
                on different devices.
        """
        if maps is None:
            maps = KernelMaps(indices, spatial_shape, batch_size)
        if not features.device == indices.device == maps.indices.device:
            raise BackendError(
                f"Features are on {features.device}, voxel indices on {indices.device} and kernel maps on"
                f" {maps.indices.device}; move all of them to one device"
            )
        if len(features) != len(indices):
            raise BackendError(f"{len(features)} rows of features do not fit {len(indices)} voxels")
        if (maps.spatial_shape, maps.batch_size) != (spatial_shape, batch_size) or not torch.equal(
            maps.indices, indices
        ):
            raise BackendError(
                f"The kernel maps were made for other voxels ({len(maps.indices)} in {maps.spatial_shape}, batch of "
                f"{maps.batch_size}) than these ({len(indices)} in {spatial_shape}, batch of {batch_size}); "
                "build them from the same indices"
            )
        return cls(
            features=features, indices=maps.indices, spatial_shape=spatial_shape, batch_size=batch_size, maps=maps
        )

    @property
    def sample(self) -> Int32[Tensor, "voxels"]:
        """Sample index of each voxel, 0 to ``batch_size - 1``."""
        return self.indices[:, 0]

    @property
    def layout(self) -> Ragged:
        """Layout of the voxels in a padded batch, shared by all tensors of this level."""
        return self.maps.layout(self.level, self.sample)

    def replace(self, features: Float[Tensor, "voxels channels"]) -> "SparseTensor":
        """Returns the same voxels with other features (any width).

        Raises:
            BackendError: there is not one row per voxel.
        """
        if len(features) != len(self.indices):
            raise BackendError(f"{len(features)} rows of features do not fit {len(self.indices)} voxels")
        return replace(self, features=features)

    def map(self, function: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """Returns the same voxels with ``function(features)``: a norm, an activation, a Linear."""
        return self.replace(function(self.features))

"""The sparse tensor: features on the voxels that exist, with the kernel maps they share."""

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
    """Features of N voxels of a batch; make the first one with ``create``, which checks, the rest follow from it.

    ``indices`` int32 [N, 4] are (sample, x, y, z) in voxels of ``level`` (edge doubled ``level`` times),
    ``0 <= x < spatial_shape[0]`` and so on; ``maps`` is shared by every tensor that descends from one ``create``.
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
        """Check coordinates and put features on them.

        ``maps`` are those that ``build_kernel_maps`` made of the same coordinates; without them they are made on use.

        Raises:
            BackendError: coordinates are not int32, repeated, out of range, or not those that ``maps`` were made for;
                or the parts lie on different devices.
        """
        if maps is None:
            maps = KernelMaps(indices, spatial_shape, batch_size)
        if not features.device == indices.device == maps.indices.device:
            raise BackendError(
                f"Features lie on {features.device}, voxel indices on {indices.device} and kernel maps on"
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
        """The sample that each voxel belongs to, 0 to ``batch_size - 1``."""
        return self.indices[:, 0]

    @property
    def layout(self) -> Ragged:
        """How the voxels lie in a padded batch, shared by all tensors of this level."""
        return self.maps.layout(self.level, self.sample)

    def replace(self, features: Float[Tensor, "voxels channels"]) -> "SparseTensor":
        """The same voxels with other features (any width).

        Raises:
            BackendError: not one row a voxel.
        """
        if len(features) != len(self.indices):
            raise BackendError(f"{len(features)} rows of features do not fit {len(self.indices)} voxels")
        return replace(self, features=features)

    def map(self, function: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """The same voxels with ``function(features)``: a norm, an activation, a Linear."""
        return self.replace(function(self.features))

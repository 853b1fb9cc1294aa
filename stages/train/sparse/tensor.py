"""The sparse tensor: features of occupied voxels, with shared kernel maps."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float, Int32
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
    def create(cls, *, features: Float[Tensor, "voxels channels"], maps: KernelMaps) -> "SparseTensor":
        """Creates the sparse tensor of the voxels of ``maps``; maps that it lacks are built on demand.

        Raises:
            BackendError: there is not one row of features per voxel.
        """
        _check_rows(features, maps.indices)
        return cls(
            features=features,
            indices=maps.indices,
            spatial_shape=maps.spatial_shape,
            batch_size=maps.batch_size,
            maps=maps,
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
        _check_rows(features, self.indices)
        return replace(self, features=features)

    def map(self, function: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """Returns the same voxels with ``function(features)``: a norm, an activation, a Linear.

        Raises:
            BackendError: ``function`` changes the number of rows.
        """
        return self.replace(function(self.features))


def _check_rows(features: Tensor, indices: Tensor) -> None:
    if len(features) != len(indices):
        raise BackendError(f"{len(features)} rows of features do not fit {len(indices)} voxels")

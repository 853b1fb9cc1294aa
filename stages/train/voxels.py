"""Voxelisation: the unique voxels that points fall into; a gather maps voxel values back to the points.

Submanifold convolution is silently wrong if a voxel appears twice, so all points are voxelised here.
"""

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from ...errors import BackendError, DataError
from .sparse.maps import voxel_coordinates, voxel_keys

__all__ = ["voxelise"]


def voxelise(
    points: Float[Tensor, "points 3"],
    sample: Int64[Tensor, "points"],
    *,
    voxel_size: float,
    full_scale: int,
    batch_size: int,
) -> tuple[Int32[Tensor, "voxels 4"], Int64[Tensor, "points"]]:
    """Returns the N voxels of the points, sorted by (sample, x, y, z), and ``point_to_voxel``, the voxel of each point.

    ``points`` are metres in the cube from 0 to ``voxel_size * full_scale``; ``sample``, 0 to ``batch_size - 1``, is the
    index of each point's cloud. ``values[point_to_voxel]`` maps values of the voxels to the points.

    Raises:
        DataError: there are no points, or a coordinate is NaN or infinite.
        BackendError: the cubes of the batch have more cells than 63-bit keys can number.
    """
    if not len(points):
        raise DataError("No points to voxelise; a frame keeps only points that a camera sees: check its calibration")
    bad = ~torch.isfinite(points).all(1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(points)} points have coordinates that are NaN or infinite, the first in row"
            f" {int(bad.nonzero()[0])}; drop them when the sweep is read"
        )
    if batch_size * full_scale**3 >= 2**63:
        raise BackendError(
            f"{batch_size} cubes of {full_scale} voxels an edge hold more voxels than can be numbered; lower"
            " train.batch_size or model.full_scale"
        )
    cells = torch.floor(points / voxel_size).long()
    shape = (full_scale, full_scale, full_scale)
    keys, point_to_voxel = torch.unique(voxel_keys(torch.cat([sample[:, None], cells], 1), shape), return_inverse=True)
    return voxel_coordinates(keys, shape), point_to_voxel

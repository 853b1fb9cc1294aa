"""Voxelisation: merges points into unique voxels with mean features; a gather maps voxel values back to points.

Submanifold convolution is silently wrong if a voxel appears twice, so all points are voxelised here.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from ...errors import BackendError, DataError

__all__ = ["Voxels", "inside_cube", "voxelise"]


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """The N voxels that P points of a batch fall into, sorted by (sample, x, y, z).

    ``features`` [N, C] is the mean over a voxel's points. ``indices`` are (sample, x, y, z), non-negative, below
    ``batch_size`` and ``spatial_shape``. Point ``p`` lies in voxel ``point_to_voxel[p]``, so
    ``voxel_values[point_to_voxel]`` maps per-voxel values to the points.
    """

    features: Float[Tensor, "voxels channels"]
    indices: Int32[Tensor, "voxels 4"]
    point_to_voxel: Int64[Tensor, "points"]
    spatial_shape: tuple[int, int, int]
    batch_size: int


def voxelise(
    points: Float[Tensor, "points 3"],
    features: Float[Tensor, "points channels"],
    sample: Int64[Tensor, "points"],
    *,
    voxel_size: float = 0.05,
    full_scale: int = 4096,
) -> Voxels:
    """Merges the points of each sample that share a voxel.

    ``points`` are metres in a frame whose cube [0, ``voxel_size * full_scale``) holds every point (see
    ``inside_cube``). ``sample`` is the index of each point's cloud; each cloud has at least one point.

    Raises:
        DataError: there are no points, a sample has none, or a coordinate or feature is NaN or infinite.
        BackendError: points are outside the cube (the caller, who has their labels, must drop them), or the cubes of
            the batch have more cells than 63-bit keys can number.
    """
    batch_size = _check_values(points, features, sample)
    if batch_size * full_scale**3 >= 2**63:
        raise BackendError(
            f"{batch_size} cubes of {full_scale} voxels an edge hold more voxels than can be numbered; lower"
            " train.batch_size or model.full_scale"
        )
    inside = inside_cube(points, voxel_size=voxel_size, full_scale=full_scale)
    if not inside.all():
        raise BackendError(
            f"{int((~inside).sum())} of {len(points)} points lie outside the cube of {full_scale} voxels of "
            f"{voxel_size} m (0 to {voxel_size * full_scale:g} m); the cloud spans {points.amin(0).tolist()} to "
            f"{points.amax(0).tolist()} m: move it to the corner, drop the points outside (inside_cube), or "
            "raise model.full_scale"
        )
    cells = _cells(points, voxel_size)
    keys = ((sample * full_scale + cells[:, 0]) * full_scale + cells[:, 1]) * full_scale + cells[:, 2]
    keys, point_to_voxel, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    return Voxels(
        features=_mean(features, point_to_voxel, counts),
        indices=_indices(keys, full_scale),
        point_to_voxel=point_to_voxel,
        spatial_shape=(full_scale, full_scale, full_scale),
        batch_size=batch_size,
    )


def inside_cube(
    points: Float[Tensor, "points 3"], *, voxel_size: float = 0.05, full_scale: int = 4096
) -> Bool[Tensor, "points"]:
    """Returns which points (metres) are inside the cube, with the same rounding as ``voxelise``."""
    cells = torch.floor(points / voxel_size)
    return ((cells >= 0) & (cells < full_scale)).all(1)


def _check_values(points: Tensor, features: Tensor, sample: Tensor) -> int:
    """Checks all values; returns the batch size."""
    if not len(points):
        raise DataError("No points to voxelise; a frame keeps only points that a camera sees: check its calibration")
    for what, values in (("coordinates", points), ("features", features)):
        bad = ~torch.isfinite(values).all(1)
        if bad.any():
            raise DataError(
                f"{int(bad.sum())} of {len(values)} points have {what} that are NaN or infinite, the first in row "
                f"{int(bad.nonzero()[0])}; drop them when the sweep is read"
            )
    if int(sample.min()) < 0:
        raise DataError(f"Samples are numbered from 0, found {int(sample.min())}")
    empty = torch.bincount(sample) == 0
    if empty.any():
        first = int(empty.nonzero()[0])
        raise DataError(
            f"{int(empty.sum())} of {len(empty)} samples have no points, the first is sample {first}; "
            "leave such frames out of the batch"
        )
    return len(empty)


def _cells(points: Float[Tensor, "points 3"], voxel_size: float) -> Int64[Tensor, "points 3"]:
    return torch.floor(points / voxel_size).long()


def _mean(
    features: Float[Tensor, "points channels"],
    point_to_voxel: Int64[Tensor, "points"],
    counts: Int64[Tensor, "voxels"],
) -> Float[Tensor, "voxels channels"]:
    """Returns the mean over each voxel's points, summed in the points' order, so that results are deterministic."""
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    order = point_to_voxel.argsort(stable=True)
    return embedding_bag(order, features, starts, mode="sum", include_last_offset=True) / counts[:, None]


def _indices(keys: Int64[Tensor, "voxels"], full_scale: int) -> Int32[Tensor, "voxels 4"]:
    rest, z = keys // full_scale, keys % full_scale
    rest, y = rest // full_scale, rest % full_scale
    return torch.stack([rest // full_scale, rest % full_scale, y, z], 1).int()

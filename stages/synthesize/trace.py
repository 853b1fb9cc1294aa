"""Ray casting of a grid of rays into a world: the nearest surface of each ray, with hit point and normal.

Cameras and LiDAR each provide a grid of rays and bounds of every solid in the grid; the rest is shared, so picture and
point cloud agree.
"""

from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Int32

from .ground import Ground
from .primitives import Solids, intersect, local_normals
from .texture_noise import Vectors

__all__ = ["GROUND", "SKY_HIT", "Hits", "Rays", "Windows", "cast", "surface"]

SKY_HIT = -1
GROUND = -2


@dataclass(frozen=True, eq=False)
class Windows:
    """Bounds of solids: K windows of the ray grid. A solid may have two."""

    solid: Int[np.ndarray, " K"]
    top: Int[np.ndarray, " K"]
    bottom: Int[np.ndarray, " K"]  # one past the last row
    left: Int[np.ndarray, " K"]
    right: Int[np.ndarray, " K"]  # one past the last column
    near: Float32[np.ndarray, " K"]  # lower bound of hits, in multiples of a ray's direction

    def take(self, index: np.ndarray) -> "Windows":
        """Returns the chosen windows (any numpy index)."""
        return Windows(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def ordered(self) -> "Windows":
        """Returns the windows that are not empty, sorted from near to far."""
        filled = np.flatnonzero((self.bottom > self.top) & (self.right > self.left))
        return self.take(filled[np.argsort(self.near[filled], kind="stable")])


@runtime_checkable
class Rays(Protocol):
    """A grid of rays in the world frame."""

    @property
    def origin(self) -> Float32[np.ndarray, "3 #h #w"]:
        """Origins of the rays."""

    @property
    def direction(self) -> Float32[np.ndarray, "3 h w"]:
        """Directions, of any length except zero."""

    def windows(self, solids: Solids) -> Windows:
        """Bounds each solid that can be seen, ordered from near to far."""


@dataclass(frozen=True, eq=False)
class Hits:
    """The first surface that each ray hits: distance in multiples of its direction (inf: none) and the solid's row."""

    distance: Float32[np.ndarray, "h w"]
    solid: Int32[np.ndarray, "h w"]  # or GROUND, or SKY_HIT


def cast(rays: Rays, solids: Solids, ground: Ground) -> Hits:
    """Finds the first surface along every ray."""
    distance = ground.intersect(rays.origin, rays.direction)
    solid = np.where(np.isfinite(distance), np.int32(GROUND), np.int32(SKY_HIT))
    seen = rays.windows(solids)
    per_column = rays.origin.shape[2] > 1
    for row in range(len(seen.solid)):
        rows = slice(seen.top[row], seen.bottom[row])
        columns = slice(seen.left[row], seen.right[row])
        known = distance[rows, columns]
        if known.max() <= seen.near[row]:
            continue
        origin = rays.origin[:, :, columns] if per_column else rays.origin
        hit = intersect(solids, int(seen.solid[row]), origin, rays.direction[:, rows, columns])
        closer = hit < known
        if closer.any():
            np.copyto(known, hit, where=closer)
            np.copyto(solid[rows, columns], seen.solid[row], where=closer, casting="unsafe")
    return Hits(distance, solid)


def surface(solids: Solids, index: Int[np.ndarray, " P"], points: Vectors) -> tuple[Vectors, Vectors]:
    """Returns the points in the local frames of their solids, and the normals in the world frame.

    ``points`` are in the world frame, in metres; each lies on the solid in row ``index`` of ``solids``.
    """
    offset = points - solids.centre[index]
    cos, sin = np.cos(solids.yaw[index]), np.sin(solids.yaw[index])
    local = np.stack(
        [offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin, offset[:, 2]], axis=1
    )
    n = local_normals(solids, index, local)
    return local, np.stack([n[:, 0] * cos - n[:, 1] * sin, n[:, 0] * sin + n[:, 1] * cos, n[:, 2]], axis=1)

"""A pinhole camera: intrinsics, poses, and the picture of a world with labels and depth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from .world import World

__all__ = ["CameraModel", "Picture", "camera_pose", "render"]


@dataclass(frozen=True, eq=False)
class CameraModel:
    """Size in pixels and the 3x3 intrinsics K; pixel (column 0, row 0) covers u, v in [0, 1)."""

    width: int
    height: int
    intrinsics: Float64[np.ndarray, "3 3"]

    @classmethod
    def from_field_of_view(cls, *, width: int = 400, height: int = 225, degrees: float = 70.0) -> "CameraModel":
        """Make a camera with square pixels, the principal point in the middle, and this horizontal field of view."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Picture:
    """What a camera saw. ``labels`` are raw lidarseg ids (0: sky), ``depth`` is along z in metres (inf: sky)."""

    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]
    depth: Float32[np.ndarray, "H W"]


def camera_pose(
    x: float, y: float, yaw: float, *, height: float = 1.5, pitch: float = 0.0
) -> Float64[np.ndarray, "4 4"]:
    """Return ``world_from_camera`` for a camera at (x, y, ``height``) that looks along ``yaw``, ``pitch`` radians down.

    Camera frame: x right, y down, z forward.
    """
    raise NotImplementedError


def render(
    world: World,
    camera: CameraModel,
    world_from_camera: Float[np.ndarray, "4 4"],
    time: float,
    rng: np.random.Generator,
) -> Picture:
    """Render the world at ``time`` (seconds) from any pose; ``rng`` draws sensor noise and rain only."""
    raise NotImplementedError

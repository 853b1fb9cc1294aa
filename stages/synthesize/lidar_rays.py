"""The rays of one spin: beams by azimuth steps, from a sensor that moves during the rotation."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
from jaxtyping import Float32, Float64

from .primitives import Solids
from .trace import Windows

__all__ = ["LidarRays"]

_TURN = 2 * np.pi
_UPRIGHT = 0.999  # cosine of the tilt up to which distances along the ground approximate those in the sensor's plane
_SPANS = (1, 2, 4)  # corners of a box that lie one edge away from corner 0


def _plane_distance(corners: Float64[np.ndarray, "K 8 3"]) -> Float64[np.ndarray, " K"]:
    """Returns the distance of boxes from the sensor's axis in its plane, 0 if the axis intersects the box.

    The projection of a box to the plane is convex, so its point nearest to the axis lies on an edge or a corner: the
    largest gap between axis and projection is along the normal of an edge or towards a corner.
    """
    flat = corners[..., :2]
    edges = flat[:, _SPANS] - flat[:, :1]
    normals = np.stack([-edges[..., 1], edges[..., 0]], axis=-1)
    towards = np.concatenate([normals, -normals, flat], axis=1)
    towards /= np.maximum(np.linalg.norm(towards, axis=-1, keepdims=True), 1e-9)
    gaps = np.einsum("kdi,kci->kdc", towards, flat).min(axis=2)
    return np.maximum(gaps.max(axis=1), 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class LidarRays:
    """A grid of unit rays, one row per beam (ascending), one column per azimuth step (clockwise, in order of time)."""

    elevations: Float64[np.ndarray, " B"]  # radians, ascending
    azimuths: Float64[np.ndarray, " S"]  # radians clockwise from forward, ascending over one rotation
    world_from_lidar_start: Float64[np.ndarray, "4 4"]
    world_from_lidar_end: Float64[np.ndarray, "4 4"]
    max_range: float
    origin: Float32[np.ndarray, "3 1 S"] = field(init=False)
    direction: Float32[np.ndarray, "3 B S"] = field(init=False)

    def __post_init__(self) -> None:
        start, end, steps = self.world_from_lidar_start, self.world_from_lidar_end, len(self.azimuths)
        part = (np.arange(steps) + 0.5) / steps
        origin = start[:3, 3:] * (1 - part) + end[:3, 3:] * part
        flat, rise = np.cos(self.elevations)[:, None], np.sin(self.elevations)[:, None]
        level = np.broadcast_to(rise, (len(rise), steps))
        local = np.stack([flat * np.sin(self.azimuths), flat * np.cos(self.azimuths), level])
        turned = [np.einsum("ij,jbs->ibs", pose[:3, :3], local) for pose in (start, end)]
        direction = turned[0] * (1 - part) + turned[1] * part
        direction /= np.linalg.norm(direction, axis=0)
        object.__setattr__(self, "origin", origin[:, None].astype(np.float32))
        object.__setattr__(self, "direction", direction.astype(np.float32))

    def windows(self, solids: Solids) -> Windows:
        """Bounds each solid within range by azimuth and elevation, with a margin for the motion during the spin."""
        start, end = self.world_from_lidar_start, self.world_from_lidar_end
        place = (start[:3, 3] + end[:3, 3]) / 2
        moved = float(np.linalg.norm(end[:3, 3] - start[:3, 3])) / 2 + 0.05
        tilt = float(np.abs(start[:3, :3] - end[:3, :3]).max()) + 0.002
        offset = solids.centre - place
        reach = np.linalg.norm(solids.half, axis=1)
        index = np.flatnonzero(np.linalg.norm(offset, axis=1) - reach < self.max_range + moved)
        corners = (solids.take(index).corners() - place) @ end[:3, :3]
        nearest = self._nearest(solids.take(index), place) if end[2, 2] > _UPRIGHT else _plane_distance(corners)
        slack = np.arcsin(np.clip(moved / np.maximum(nearest, 1e-6), 0, 1)) + tilt
        left, right = self._columns(corners, nearest, slack)
        top, bottom = self._rows(corners, nearest, slack)
        near = np.maximum(nearest - moved, 0).astype(np.float32)
        return self._unwrapped(Windows(index, top, bottom, left, right, near))

    @staticmethod
    def _nearest(solids: Solids, place: np.ndarray) -> np.ndarray:
        """Returns the horizontal distance from ``place`` to the upright box around each solid (0 inside)."""
        offset = place[:2] - solids.centre[:, :2]
        cos, sin = np.cos(solids.yaw), np.sin(solids.yaw)
        x, y = offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin
        return np.hypot(np.maximum(np.abs(x) - solids.half[:, 0], 0), np.maximum(np.abs(y) - solids.half[:, 1], 0))

    def _columns(self, corners: np.ndarray, nearest: np.ndarray, slack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first column, in [0, S), and the end column, at most one rotation later."""
        steps = len(self.azimuths)
        angle = np.arctan2(corners[..., 0], corners[..., 1])
        middle = np.arctan2(corners[..., 0].mean(axis=1), corners[..., 1].mean(axis=1))
        apart = np.mod(angle - middle[:, None] + np.pi, _TURN) - np.pi
        around = (nearest < 0.05) | (slack > 1.2)
        low = np.where(around, -np.pi, apart.min(axis=1) - slack)
        high = np.where(around, np.pi, apart.max(axis=1) + slack)
        first = np.floor(np.mod(middle + low - self.azimuths[0], _TURN) / _TURN * steps).astype(np.int64) % steps
        count = np.minimum(np.ceil((high - low) / _TURN * steps).astype(np.int64) + 2, steps)
        return first, first + count

    def _rows(self, corners: np.ndarray, nearest: np.ndarray, slack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        close, far = np.maximum(nearest, 0.05), np.hypot(corners[..., 0], corners[..., 1]).max(axis=1)
        below, above = corners[..., 2].min(axis=1), corners[..., 2].max(axis=1)
        low = np.minimum(np.arctan2(below, close), np.arctan2(below, far)) - slack
        high = np.maximum(np.arctan2(above, close), np.arctan2(above, far)) + slack
        return np.searchsorted(self.elevations, low), np.searchsorted(self.elevations, high, side="right")

    def _unwrapped(self, windows: Windows) -> Windows:
        """Splits windows at the start azimuth; drops empty ones; sorts from near to far."""
        steps = len(self.azimuths)
        over = windows.take(windows.right > steps)
        parts = (
            replace(windows, right=np.minimum(windows.right, steps)),
            replace(over, left=np.zeros_like(over.left), right=over.right - steps),
        )
        columns = {item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Windows)}
        return Windows(**columns).ordered()

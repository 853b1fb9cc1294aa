"""The ground of a street: a winding road with side streets, raised kerbs, sidewalks and terrain."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from .classes import DRIVEABLE, SIDEWALK, TERRAIN
from .styles import LayoutStyle

__all__ = ["Ground"]

_FARTHEST = 400.0  # metres; farther ground counts as horizon


@dataclass(frozen=True, eq=False)
class Ground:
    """Road along x around a sine-shaped centre line; side streets cross it at ``crossings``. z = 0 on the road."""

    layout: LayoutStyle
    phase: float  # radians, of the centre line
    crossings: Float32[np.ndarray, " C"]  # x of the side streets' centre lines, ascending
    half_crossing: float  # metres from a side street's centre line to its kerb

    def centre(self, x: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """Returns y of the road's centre line."""
        layout = self.layout
        return (layout.bend_amplitude * np.sin(x / layout.bend_length + self.phase)).astype(x.dtype)

    def slope(self, x: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """Returns dy/dx of the centre line."""
        layout = self.layout
        return (layout.bend_amplitude / layout.bend_length * np.cos(x / layout.bend_length + self.phase)).astype(
            x.dtype
        )

    def crossing_distance(self, x: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """Returns the signed x distance to the nearest side street's centre line (1e6 without any)."""
        if len(self.crossings) == 0:
            return np.full_like(x, 1e6)
        middles = (self.crossings[1:] + self.crossings[:-1]) / 2
        return x - self.crossings[np.searchsorted(middles, x)].astype(x.dtype)

    def on_main_road(self, x: Float[np.ndarray, "*S"], y: Float[np.ndarray, "*S"]) -> Bool[np.ndarray, "*S"]:
        """Returns which points lie between the kerbs of the main road."""
        return np.abs(y - self.centre(x)) < self.layout.half_road

    def on_side_street(self, x: Float[np.ndarray, "*S"]) -> Bool[np.ndarray, "*S"]:
        """Returns which points lie between the kerbs of a side street, extended across the main road."""
        return np.abs(self.crossing_distance(x)) < self.half_crossing

    def is_road(self, x: Float[np.ndarray, "*S"], y: Float[np.ndarray, "*S"]) -> Bool[np.ndarray, "*S"]:
        """Returns which points lie on the main road or a side street."""
        return self.on_main_road(x, y) | self.on_side_street(x)

    def classes(self, x: Float[np.ndarray, "*S"], y: Float[np.ndarray, "*S"]) -> UInt8[np.ndarray, "*S"]:
        """Returns the raw label of each point."""
        layout = self.layout
        beyond = np.abs(y - self.centre(x)) - layout.half_road
        beside = np.abs(self.crossing_distance(x)) - self.half_crossing
        reach = layout.verge_width + layout.sidewalk_width
        along_side_street = (beside < layout.sidewalk_width) & (beyond >= 0)
        sidewalk = ((beyond >= layout.verge_width) & (beyond < reach)) | along_side_street
        labels = np.where(sidewalk, np.uint8(SIDEWALK), np.uint8(TERRAIN))
        labels[(beyond < 0) | (beside < 0)] = DRIVEABLE
        return labels

    def intersect(
        self, origin: Float32[np.ndarray, "3 #h #w"], direction: Float32[np.ndarray, "3 h w"]
    ) -> Float32[np.ndarray, "h w"]:
        """Returns where rays from above hit the ground, in multiples of their directions; inf without a hit."""
        height = np.float32(self.layout.kerb_height)
        down = direction[2] < -1e-6
        rate = np.where(down, -direction[2], np.float32(1))
        upper = np.where(down, (origin[2] - height) / rate, np.float32(np.inf)).astype(np.float32)
        lower = (origin[2] / rate).astype(np.float32)
        reach = lower * np.hypot(direction[0], direction[1])
        down &= reach < _FARTHEST
        upper[~down] = np.inf
        rows, columns = np.nonzero(down)
        start, end = upper[rows, columns], lower[rows, columns]
        ray = direction[:, rows, columns]
        base = np.broadcast_to(origin, direction.shape)[:2, rows, columns]
        over_road = self.is_road(base[0] + start * ray[0], base[1] + start * ray[1])
        hit = start.copy()
        hit[over_road] = self._descend(base[:, over_road], ray[:, over_road], start[over_road], end[over_road])
        upper[rows, columns] = hit
        return upper

    def _descend(self, base: np.ndarray, ray: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Follows rays from kerb height above the road down to the road, or to the kerb in between."""
        hit = end.copy()
        x, y = base[0] + end * ray[0], base[1] + end * ray[1]
        main, side = self.on_main_road(x, y), self.on_side_street(x)
        blocked = ~(main | side)
        x, y = base[0] + start * ray[0], base[1] + start * ray[1]
        corner = np.flatnonzero((main & ~self.on_main_road(x, y)) | (side & ~self.on_side_street(x)))
        for share in (0.75, 0.5, 0.25):  # from one road to the other, possibly over the corner between them
            middle = start[corner] + np.float32(share) * (end[corner] - start[corner])
            over = ~self.is_road(base[0, corner] + middle * ray[0, corner], base[1, corner] + middle * ray[1, corner])
            hit[corner[over]] = middle[over]
            blocked[corner[over]] = True
        stopped = np.flatnonzero(blocked)
        base, ray = base[:, stopped], ray[:, stopped]
        low, high = start[stopped], hit[stopped]
        for _ in range(12):
            middle = (low + high) / 2
            road = self.is_road(base[0] + middle * ray[0], base[1] + middle * ray[1])
            low, high = np.where(road, middle, low), np.where(road, high, middle)
        hit[stopped] = high
        return hit

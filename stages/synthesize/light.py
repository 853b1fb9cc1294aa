"""Light on a street: sun with shadows, sky light, lamps and headlights; the sky; and the air in between."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32

from .ground import Ground
from .materials import HEADLIGHT, LAMP
from .primitives import ELLIPSOID, Solids
from .styles import LightStyle
from .texture_noise import Values, Vectors, noise2

__all__ = ["GroundMaps", "illuminate", "own_headlights", "sky_colour", "through_air"]

_HALF_SPAN = 52.0  # metres of shadow and lamp light drawn around the camera
_CELL = 0.13  # metres
_CELLS = int(2 * _HALF_SPAN / _CELL)
_LAMP_COLOUR = np.array([1.1, 0.88, 0.58], np.float32)
_SHADOW = 0.86  # share of the sun that a shadow takes


@dataclass(frozen=True, eq=False)
class GroundMaps:
    """Light maps from above around one position: sun and sky light that reach the ground, and lamp light."""

    x: float  # of the corner of the first cell
    y: float
    sun: Float32[np.ndarray, "C C"]  # 0 in shadow, 1 in the sun
    sky: Float32[np.ndarray, "C C"]  # darker under vehicles and at the foot of walls
    lamps: Float32[np.ndarray, "C C"]

    @classmethod
    def draw(cls, solids: Solids, light: LightStyle, x: float, y: float) -> "GroundMaps":
        """Draws the maps around a position in the world."""
        corner_x, corner_y = x - _HALF_SPAN, y - _HALF_SPAN
        near = np.hypot(solids.centre[:, 0] - x, solids.centre[:, 1] - y) < _HALF_SPAN + 25
        close = solids.take(np.flatnonzero(near))
        sun, sky = np.zeros((_CELLS, _CELLS), np.uint8), np.zeros((_CELLS, _CELLS), np.uint8)
        corners = close.corners()
        corners[close.kind == ELLIPSOID] = (0.75 * corners + 0.25 * close.centre[:, None])[close.kind == ELLIPSOID]
        if max(light.sun) > 0.12:
            slope = max(np.sin(light.sun_elevation), 0.12)
            cast = corners[..., 2:] * np.float32(np.cos(light.sun_elevation) / slope)
            away = np.array([np.cos(light.sun_azimuth), np.sin(light.sun_azimuth)], np.float32)
            _fill(sun, corners[..., :2] - cast * away, corner_x, corner_y)
        _fill(sky, corners[corners[..., 2].min(axis=1) < 0.6][..., :2], corner_x, corner_y)
        return cls(
            corner_x,
            corner_y,
            1 - cv2.GaussianBlur(sun, (0, 0), 0.9).astype(np.float32) / 255,
            1 - 0.6 * cv2.GaussianBlur(sky, (0, 0), 2.5).astype(np.float32) / 255,
            _lamp_map(close, light, corner_x, corner_y),
        )

    def sample(self, field: Float32[np.ndarray, "C C"], x: Values, y: Values) -> Values:
        """Returns a map's values at points of the world, interpolated; clamped at the border."""
        u = np.clip((x - self.x) / _CELL - 0.5, 0, _CELLS - 1.001).astype(np.float32)
        v = np.clip((y - self.y) / _CELL - 0.5, 0, _CELLS - 1.001).astype(np.float32)
        i, j = u.astype(np.int32), v.astype(np.int32)
        a, b = u - i.astype(np.float32), v - j.astype(np.float32)
        upper = field[j, i] * (1 - a) + field[j, i + 1] * a
        lower = field[j + 1, i] * (1 - a) + field[j + 1, i + 1] * a
        return upper * (1 - b) + lower * b


def _fill(image: np.ndarray, outlines: np.ndarray, corner_x: float, corner_y: float) -> None:
    """Paints the convex hulls of point groups [K, 8, 2] given in metres."""
    cells = (
        ((outlines - np.array([corner_x, corner_y], np.float32)) / np.float32(_CELL)).clip(-8000, 8000).astype(np.int32)
    )
    inside = (cells.max(axis=1) > 0).all(axis=1) & (cells.min(axis=1) < _CELLS).all(axis=1)
    for group in cells[inside]:
        cv2.fillConvexPoly(image, cv2.convexHull(group), 255)


def _lamp_map(solids: Solids, light: LightStyle, corner_x: float, corner_y: float) -> np.ndarray:
    """Adds up pools of light below street lamps and before headlights."""
    size = _CELLS // 4
    pools = np.zeros((size, size), np.float32)
    if light.lamps <= 0 and light.headlights <= 0:
        return np.zeros((_CELLS, _CELLS), np.float32)
    axis = (np.arange(size, dtype=np.float32) + 0.5) * 4 * np.float32(_CELL)
    if light.lamps > 0:
        for x, y, z in solids.centre[solids.material == LAMP]:
            across = np.exp(-(((axis - (x - corner_x)) / z) ** 2))
            pools += light.lamps * np.exp(-(((axis - (y - corner_y)) / z) ** 2))[:, None] * across[None]
    if light.headlights > 0:
        shine = solids.material == HEADLIGHT
        for (x, y, _), yaw in zip(solids.centre[shine], solids.yaw[shine], strict=True):
            dx, dy = axis[None] + np.float32(corner_x - x), axis[:, None] + np.float32(corner_y - y)
            ahead = dx * np.cos(yaw) + dy * np.sin(yaw)
            beside = dy * np.cos(yaw) - dx * np.sin(yaw)
            width = np.maximum(0.3 + 0.35 * ahead, 0.3)
            pools += 0.45 * light.headlights * np.exp(-((beside / width) ** 2) - np.maximum(ahead, 0) / 9) * (ahead > 0)
    return cv2.resize(pools, (_CELLS, _CELLS), interpolation=cv2.INTER_LINEAR)


def _towards_sun(light: LightStyle) -> np.ndarray:
    flat = np.cos(light.sun_elevation)
    turn = light.sun_azimuth
    return np.array([flat * np.cos(turn), flat * np.sin(turn), np.sin(light.sun_elevation)], np.float32)


def illuminate(
    maps: GroundMaps, light: LightStyle, points: Vectors, normals: Vectors, on_ground: np.ndarray
) -> Vectors:
    """Returns the light that arrives at surface points (world frame), without the ego headlights."""
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    sun = _towards_sun(light)
    facing = np.clip(normals @ sun, 0, 1)
    sky = np.float32(0.72) + np.float32(0.28) * normals[:, 2]
    gx, gy = x[on_ground], y[on_ground]
    facing[on_ground] *= 1 - _SHADOW * (1 - maps.sample(maps.sun, gx, gy))
    sky[on_ground] *= maps.sample(maps.sky, gx, gy)
    arriving = sky[:, None] * np.array(light.ambient, np.float32) + facing[:, None] * np.array(light.sun, np.float32)
    if light.lamps > 0 or light.headlights > 0:
        pool = maps.sample(maps.lamps, x, y) * np.exp(-np.maximum(z, 0) / 5)
        arriving = arriving + pool[:, None] * _LAMP_COLOUR
    return arriving


def own_headlights(light: LightStyle, ground: Ground, position: Float32[np.ndarray, " 3"], points: Vectors) -> Vectors:
    """Returns the light of the ego vehicle's headlights: beams along the road from below the camera."""
    heading = np.arctan(ground.slope(position[:1]))[0]
    dx, dy = points[:, 0] - position[0], points[:, 1] - position[1]
    ahead, beside = dx * np.cos(heading) + dy * np.sin(heading), dy * np.cos(heading) - dx * np.sin(heading)
    distance = np.hypot(ahead, beside)
    angle, rise = beside / np.maximum(ahead, 0.5), (points[:, 2] - 0.7) / np.maximum(distance, 1.0)
    beam = np.exp(-((angle / 0.5) ** 2) - ((rise + 0.03) / 0.13) ** 2) * (ahead > 0.5)
    return (light.headlights * 1.4 * beam / (1 + (distance / 15) ** 2))[:, None] * np.array([1, 0.97, 0.88], np.float32)


def sky_colour(light: LightStyle, direction: Vectors) -> Vectors:
    """Returns the colour of the sky along unit directions: a gradient, clouds, and a glow around the sun."""
    rise = np.clip(direction[:, 2], 0, 1)
    mix = (rise**0.6)[:, None]
    colour = np.array(light.horizon, np.float32) * (1 - mix) + np.array(light.zenith, np.float32) * mix
    above = np.maximum(rise, 0.04)
    drift = noise2(direction[:, 0] / above * 0.5, direction[:, 1] / above * 0.5, 10.0, 4)
    veil = (np.clip(drift, 0, 1.5) * np.float32(light.clouds) * np.clip(rise * 8, 0, 1))[:, None]
    colour = colour + veil * (1 - colour) * np.float32(0.07 if "night" in light.time_of_day else 0.6)
    if max(light.sun) > 0.12:
        sun = _towards_sun(light)
        near = np.clip(direction @ sun, 0, 1)
        colour += (near**40 * 0.35 + near**900 * 1.2)[:, None] * np.array(light.sun, np.float32)
    return colour


def through_air(light: LightStyle, colour: Vectors, distance: Values) -> Vectors:
    """Returns light attenuated by the air and mixed with the air's colour."""
    left = np.exp(-np.float32(light.extinction) * distance)[:, None]
    return colour * left + np.array(light.air, np.float32) * (1 - left)

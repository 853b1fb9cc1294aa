"""Snow on surfaces, and flakes in the air as a camera sees them.

Pictures and sweeps use the same functions of the snow cover and agree: a pixel is as white as its surface is covered,
and a beam hits snow where the cover exceeds one half.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Integer, UInt8

from . import classes
from .ground import Ground
from .materials import FACADE, FOLIAGE, GLASS, SKIN
from .texture_noise import Values, Vectors, noise3, smooth2

__all__ = ["draw_flakes", "ground_cover", "solid_cover", "under_snow"]

_SNOW = np.array([0.94, 0.96, 0.99], np.float32)
_TRACK = 0.78  # metres from the middle of a lane to the wheel tracks
_NEAREST, _FARTHEST = 0.35, 10.0  # metres; farther flakes are part of the haze
_EXPOSURE = 0.008  # seconds
_FALL = 1.3  # metres per second


def ground_cover(ground: Ground, labels: UInt8[np.ndarray, " P"], x: Values, y: Values) -> Values:
    """Returns the snow cover of the ground, 0 to 1: nearly all terrain, trodden sidewalks, roads without the tracks."""
    layout = ground.layout
    patches, grain = smooth2(x, y, 1.1, 3), smooth2(x, y, 7.0, 5)
    depth = np.float32(0.95) + np.float32(0.12) * patches + np.float32(0.16) * grain
    walk, road = labels == classes.SIDEWALK, labels == classes.DRIVEABLE
    depth[walk] = (np.float32(0.45) + np.float32(0.28) * smooth2(x, np.float32(0.4) * y, 2.0, 4) + 0.12 * grain)[walk]
    side, beside = np.abs(y - ground.centre(x)), np.abs(ground.crossing_distance(x))
    astray = np.float32(0.16) * smooth2(x, y, 0.12, 0)  # wheels do not all follow one line
    lanes = np.where(
        side < layout.half_road,
        _tracks(side + astray, layout.lane_width),
        _tracks(beside + astray, ground.half_crossing),
    )
    parked = (side > layout.lanes * layout.lane_width) & (beside > ground.half_crossing)
    junction = (side < layout.half_road) & (beside < ground.half_crossing)
    driven = np.where(junction, np.float32(0.45), lanes * ~parked)
    depth[road] = (np.float32(0.7) - driven + np.float32(0.24) * patches + np.float32(0.13) * grain)[road]
    return _share(depth)


def _tracks(side: np.ndarray, width: float) -> np.ndarray:
    """Returns the cover that wheels remove ``side`` metres from the middle of a road with lanes of ``width`` metres."""
    away = np.abs(np.mod(side, width) - width / 2) - _TRACK
    return np.float32(0.75) * np.exp(-((away / np.float32(0.36)) ** 2)).astype(np.float32)


def solid_cover(material: Integer[np.ndarray, " P"], points: Vectors, normals: Vectors) -> Values:
    """Returns the snow cover of solids, 0 to 1: surfaces that face up, and the upper half of crowns in patches."""
    leafy = material == FOLIAGE
    ragged = noise3(points[:, 0], points[:, 1], points[:, 2], 11.0, 1)
    lies = normals[:, 2] * np.float32(1.1) - np.where(leafy, np.float32(0.0), np.float32(0.25))
    lies += np.where(leafy, np.float32(0.22), np.float32(0.1)) * ragged
    lies[np.isin(material, (FACADE, GLASS, SKIN))] = 0
    return _share(lies)


def _share(depth: np.ndarray) -> Values:
    """Returns the cover for a snow depth; half is covered at depth 0.5."""
    part = np.clip((depth - np.float32(0.25)) * 2, 0, 1).astype(np.float32)
    return part * part * (3 - 2 * part)


def under_snow(colour: Vectors, cover: Values, wet: Bool[np.ndarray, " P"] | None = None) -> Vectors:
    """Returns colours of surfaces with snow; ``wet`` surfaces are darker between the snow."""
    bare = colour if wet is None else colour * np.where(wet, np.float32(0.72), np.float32(1))[:, None]
    return bare * (1 - cover)[:, None] + cover[:, None] * _SNOW


def draw_flakes(
    radiance: Float32[np.ndarray, "H W 3"],
    depth: Float32[np.ndarray, "H W"],
    intrinsics: Float64[np.ndarray, "3 3"],
    *,
    speed: float,
    light: tuple[float, float, float],
    rng: np.random.Generator,
) -> Float32[np.ndarray, "H W 3"]:
    """Returns the picture with flakes in front of farther surfaces.

    A flake of a few millimetres is a speck at ten metres and a defocused blob close to the lens. During the exposure it
    falls and drifts, and the camera moves at ``speed`` metres per second: flakes become streaks that point away from
    the centre. ``depth`` is in metres along z (inf: sky), ``light`` the colour of a flake.
    """
    height, width = depth.shape
    count = int(rng.integers(1500, 3500))
    focal, centre = float(intrinsics[0, 0]), intrinsics[:2, 2]
    z = _NEAREST + (_FARTHEST - _NEAREST) * np.sqrt(rng.random(count))
    start = np.stack([rng.uniform(-0.05, 1.05, count) * width, rng.uniform(-0.05, 1.05, count) * height])
    drift = np.stack([rng.uniform(-2, 2) + 0.5 * rng.standard_normal(count), _FALL + 0.3 * rng.standard_normal(count)])
    later = np.maximum(z - speed * _EXPOSURE, 0.5 * z)
    end = ((start - centre[:, None]) * z / later + focal * drift * _EXPOSURE / later) + centre[:, None]
    radius = focal * 0.0045 * rng.lognormal(0.0, 0.5, count) / z  # pixels
    length = np.linalg.norm(end - start, axis=0)
    opacity = np.minimum(1.0, (2 * radius) ** 2) * np.minimum(1.0, (1 + 2 * radius) / (0.6 * length + 2 * radius))
    column, row = (np.clip(start[axis], 0, size - 1).astype(int) for axis, size in ((0, width), (1, height)))
    seen = depth[row, column] > z
    for near, far, blur in ((3.0, np.inf, 0.5), (1.2, 3.0, 1.2), (0.0, 1.2, 3.5)):
        layer = np.zeros((height, width), np.uint8)
        for flake in np.flatnonzero(seen & (z >= near) & (z < far)):
            ends = [tuple(int(value) for value in np.round(16 * place[:, flake])) for place in (start, end)]
            strength = 255 * float(opacity[flake])
            cv2.line(layer, ends[0], ends[1], strength, max(1, round(2 * radius[flake])), cv2.LINE_AA, 4)
        sigma = blur * width / 800
        part = np.float32(0.9 / 255) * cv2.GaussianBlur(layer.astype(np.float32), (0, 0), sigma)[..., None]
        radiance = radiance * (1 - part) + part * np.array(light, np.float32)
    return radiance

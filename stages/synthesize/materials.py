"""Materials of surfaces: textured colour, emitted light, and LiDAR properties."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, UInt8

from . import classes
from .ground import Ground
from .primitives import Solids
from .styles import MaterialStyle, Style
from .texture_noise import Values, Vectors, hash01, noise2, noise3, smooth2

__all__ = ["GROUND_MATERIALS", "REFLECTIVITY", "ground_look", "is_window", "marked", "solid_look"]

FACADE, ROOF, PAINT, GLASS, TYRE, WOOD, FOLIAGE, CLOTH, SKIN, METAL, PLASTIC, STRIPES, SIGN = range(13)
HEADLIGHT, TAILLIGHT, LAMP = 13, 14, 15
MARKING, ROAD, WALK, EARTH, SNOW = 16, 17, 18, 19, 20
GROUND_MATERIALS = {classes.DRIVEABLE: ROAD, classes.SIDEWALK: WALK, classes.TERRAIN: EARTH}
"""Material of the ground by raw label (``MARKING`` for painted lines)."""

REFLECTIVITY: Mapping[int, tuple[float, float, float]] = {
    FACADE: (34.0, 0.02, 0.01),
    ROOF: (25.0, 0.02, 0.01),
    PAINT: (30.0, 0.10, 0.005),
    GLASS: (6.0, 0.62, 0.01),
    TYRE: (4.0, 0.25, 0.01),
    WOOD: (20.0, 0.02, 0.02),
    FOLIAGE: (16.0, 0.06, 0.10),
    CLOTH: (22.0, 0.05, 0.02),
    SKIN: (18.0, 0.03, 0.01),
    METAL: (40.0, 0.08, 0.005),
    PLASTIC: (28.0, 0.05, 0.005),
    STRIPES: (90.0, 0.02, 0.005),
    SIGN: (180.0, 0.01, 0.005),
    HEADLIGHT: (60.0, 0.20, 0.005),
    TAILLIGHT: (110.0, 0.05, 0.005),
    LAMP: (25.0, 0.10, 0.005),
    MARKING: (38.0, 0.03, 0.005),
    ROAD: (9.0, 0.05, 0.006),
    WALK: (20.0, 0.03, 0.008),
    EARTH: (14.0, 0.04, 0.035),
    SNOW: (52.0, 0.05, 0.025),
}
"""Material -> intensity (of 255, at normal incidence), share of lost pulses, deviation added to ranges (metres)."""

_FINE, _COARSE = 6.0, 1.3  # texels per metre


def marked(ground: Ground, x: Values, y: Values) -> tuple[np.ndarray, np.ndarray]:
    """Returns which road points have white paint (lines and crosswalks), and which the centre line."""
    layout = ground.layout
    across, along = y - ground.centre(x), ground.crossing_distance(x)
    away = np.abs(along) - ground.half_crossing  # metres to the mouth of the side street
    open_road, side = away > 5.0, np.abs(across)
    inner = layout.lanes * layout.lane_width
    double = layout.lanes > 1
    centre = (np.abs(side - 0.14) < 0.07) if double else ((side < 0.07) & (np.mod(x, 6.0) < 3.2))
    white = np.abs(side - inner) < 0.07
    for lane in range(1, layout.lanes):
        white |= (np.abs(side - lane * layout.lane_width) < 0.07) & (np.mod(x, 9.0) < 3.5)
    zebra = (np.abs(away - 2.0) < 1.3) & (np.mod(across, 1.0) < 0.5)
    stop = (np.abs(away - 4.2) < 0.2) & (side > 0.3)
    on_road = side < layout.half_road
    return ((white & open_road) | zebra | stop) & on_road, centre & open_road & on_road


def ground_look(
    style: Style, ground: Ground, labels: UInt8[np.ndarray, " P"], x: Values, y: Values, distance: Values
) -> Vectors:
    """Returns the colour of the ground at points seen from ``distance`` metres (far texture fades out)."""
    look, fade = style.materials, np.exp(-distance / 25)
    fine, coarse = smooth2(x, y, _FINE, 1), smooth2(x, y, _COARSE, 2)
    road, walk, terrain = labels == classes.DRIVEABLE, labels == classes.SIDEWALK, labels == classes.TERRAIN
    colour = np.empty((len(x), 3), np.float32)
    colour[road] = np.array(look.road, np.float32) * (1 + look.road_contrast * (fine * fade + 0.4 * coarse))[road, None]
    colour[walk] = np.array(look.sidewalk, np.float32) * (1 + look.sidewalk_contrast * fine * fade)[walk, None]
    colour[terrain] = (
        np.array(look.terrain, np.float32) * (1 + look.terrain_contrast * (fine * fade + 0.6 * coarse))[terrain, None]
    )
    joints = ((np.mod(x, look.tile) < 0.07) | (np.mod(y, look.tile) < 0.07)) & walk & (distance < 24)
    colour[joints] *= 0.76
    kerb = ~road & (np.abs(np.abs(y - ground.centre(x)) - ground.layout.half_road - 0.08) < 0.1)
    colour[kerb] = np.array(look.sidewalk, np.float32) * np.float32(1.12)
    if look.marked:
        white, centre = marked(ground, x, y)
        worn = (coarse < 1.6) & road
        colour[white & worn] = np.array(look.marking, np.float32) * (1 + 0.1 * fine)[white & worn, None]
        colour[centre & worn] = np.array(look.centre_line, np.float32) * (1 + 0.1 * fine)[centre & worn, None]
    return np.clip(colour, 0, 1)


def _window_cells(
    look: MaterialStyle, local: np.ndarray, half: np.ndarray, params: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which facade points are window, and the column and storey of each."""
    sideways = np.abs(local[:, 0]) / half[:, 0] > np.abs(local[:, 1]) / half[:, 1]
    across = np.where(sideways, local[:, 1] + half[:, 1], local[:, 0] + half[:, 0])
    width = 2 * np.where(sideways, half[:, 1], half[:, 0])
    count = np.maximum(np.round(width / params[:, 0]), 1)
    column = across / width * count
    storey = (local[:, 2] + half[:, 2]) / np.float32(look.storey)
    inside = (np.abs(column - np.floor(column) - 0.5) < params[:, 1] / 2) & (
        np.abs(storey - np.floor(storey) - 0.5) < params[:, 2] / 2
    )
    top = local[:, 2] > half[:, 2] - 0.5
    return inside & ~top, np.floor(column), np.floor(storey)


def is_window(style: Style, solids: Solids, index: Int[np.ndarray, " P"], local: Vectors) -> np.ndarray:
    """Returns which points lie on the glass of a facade."""
    facade = solids.material[index] == FACADE
    window = np.zeros(len(index), bool)
    chosen = index[facade]
    window[facade] = _window_cells(style.materials, local[facade], solids.half[chosen], solids.params[chosen])[0]
    return window


def _facade(
    style: Style, solids: Solids, index: np.ndarray, local: np.ndarray, points: np.ndarray, fade: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    look, params, half = style.materials, solids.params[index], solids.half[index]
    u, v = points[:, 0] + points[:, 1], local[:, 2] + half[:, 2]
    colour = solids.colour[index] * (1 + look.facade_contrast * noise2(u, points[:, 2], 4.0, 3) * fade)[:, None]
    brick = params[:, 3] - np.floor(params[:, 3]) > 0.5
    course = np.floor(v / 0.25)
    mortar = brick & ((np.mod(v, 0.25) < 0.05) | (np.mod(u + 0.25 * np.mod(course, 2), 0.5) < 0.05))
    colour[mortar] *= (1 + 0.35 * fade[mortar])[:, None]
    window, column, storey = _window_cells(look, local, half, params)
    chance = hash01(column, storey, np.floor(params[:, 3]))
    colour[window] = np.array(look.window, np.float32) * (0.6 + 0.8 * chance[window])[:, None]
    emission = np.zeros_like(colour)
    lit = window & (chance < style.light.lit_windows)
    strength = 0.35 + 0.65 * chance[lit] / max(style.light.lit_windows, 1e-3)
    emission[lit] = np.array([0.95, 0.72, 0.38], np.float32) * strength[:, None]
    colour[v < 0.6] *= 0.7
    return colour, emission


def solid_look(
    style: Style, solids: Solids, index: Int[np.ndarray, " P"], local: Vectors, points: Vectors, distance: Values
) -> tuple[Vectors, Vectors]:
    """Returns colour and emitted light at points (``local``: in the axes of the solids, ``points``: in the world)."""
    colour, material = solids.colour[index], solids.material[index]
    emission = np.zeros_like(colour)
    fade = np.exp(-distance / 50)
    facade = material == FACADE
    if facade.any():
        chosen = index[facade]
        colour[facade], emission[facade] = _facade(style, solids, chosen, local[facade], points[facade], fade[facade])
    leafy = material == FOLIAGE
    own = local[leafy]
    rough = noise3(own[:, 0], own[:, 1], own[:, 2], 13.0, 2)
    colour[leafy] *= (1 + style.vegetation.contrast * rough * fade[leafy])[:, None]
    plain = (material == ROOF) | (material == WOOD) | (material == METAL)
    grain = noise2(points[plain, 0] + points[plain, 1], points[plain, 2], 5.0, 2)
    colour[plain] *= (1 + 0.08 * grain * fade[plain])[:, None]
    striped = material == STRIPES
    height = np.mod(local[striped, 2] * 3 + local[striped, 1] * 2, 1.0) < 0.5
    colour[striped] = np.where(height[:, None], colour[striped], np.float32(0.9))
    if style.light.headlights > 0:
        emission[material == HEADLIGHT] = (1.6, 1.5, 1.25)
        emission[material == TAILLIGHT] = (0.95, 0.07, 0.05)
    if style.light.lamps > 0:
        emission[material == LAMP] = (1.8, 1.5, 1.0)
    return np.clip(colour, 0, 1), emission

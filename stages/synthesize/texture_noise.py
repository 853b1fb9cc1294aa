"""Deterministic texture: tables of smooth noise from fixed seeds, looked up by metres on a surface."""

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, Float32

__all__ = ["Values", "Vectors", "hash01", "noise2", "noise3", "smooth2"]

Values = Float32[np.ndarray, " P"]  #: a number for each of P points
Vectors = Float32[np.ndarray, "P 3"]  #: P positions, directions or colours

_SIZE = 256  # texels along a side; a power of two, so that wrapping is a bit mask
_TABLES = 6
_OCTAVES = ((8, 1.0), (16, 0.7), (32, 0.6), (64, 0.5), (128, 0.4), (256, 0.35))


@cache
def _tables() -> Float32[np.ndarray, "K S S"]:
    """Makes the tables: octaves of value noise, unit standard deviation, clipped at 2.5."""
    tables = np.zeros((_TABLES, _SIZE, _SIZE), np.float32)
    for number in range(_TABLES):
        rng = np.random.default_rng(number)
        for cells, strength in _OCTAVES:
            grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), ((0, 1), (0, 1)), "wrap")
            full = cv2.resize(grid, (_SIZE + _SIZE // cells,) * 2, interpolation=cv2.INTER_LINEAR)
            tables[number] += np.float32(strength) * full[:_SIZE, :_SIZE]
        tables[number] /= tables[number].std()
    return np.clip(tables, -2.5, 2.5)


def _texel(metres: Float[np.ndarray, "*S"], scale: float) -> np.ndarray:
    return np.floor(metres * np.float32(scale)).astype(np.int32) & (_SIZE - 1)


def noise2(
    u: Float[np.ndarray, "*S"], v: Float[np.ndarray, "*S"], scale: float, table: int
) -> Float32[np.ndarray, "*S"]:
    """Returns noise of zero mean and unit deviation at surface coordinates in metres, ``scale`` texels per metre."""
    return _tables()[table % _TABLES][_texel(v, scale), _texel(u, scale)]


def noise3(
    x: Float[np.ndarray, "*S"], y: Float[np.ndarray, "*S"], z: Float[np.ndarray, "*S"], scale: float, table: int
) -> Float32[np.ndarray, "*S"]:
    """Returns noise at points in metres: two slanted cuts through the tables, so it varies along all three axes."""
    first = noise2(x + np.float32(0.31) * y, z + np.float32(0.53) * y, scale, table)
    second = noise2(y - np.float32(0.27) * z, z + np.float32(0.44) * x, scale, table + 1)
    return (first + second) * np.float32(0.7071)


def smooth2(
    u: Float[np.ndarray, "*S"], v: Float[np.ndarray, "*S"], scale: float, table: int
) -> Float32[np.ndarray, "*S"]:
    """Returns the noise of ``noise2`` interpolated between texels, for texture at close range."""
    s, t = u * np.float32(scale), v * np.float32(scale)
    i, j = np.floor(s), np.floor(t)
    a, b = (s - i).astype(np.float32), (t - j).astype(np.float32)
    i, j = i.astype(np.int32), j.astype(np.int32)
    grid, mask = _tables()[table % _TABLES], _SIZE - 1
    upper = grid[j & mask, i & mask] * (1 - a) + grid[j & mask, (i + 1) & mask] * a
    lower = grid[(j + 1) & mask, i & mask] * (1 - a) + grid[(j + 1) & mask, (i + 1) & mask] * a
    return upper * (1 - b) + lower * b


def hash01(
    a: Float[np.ndarray, "*S"], b: Float[np.ndarray, "*S"], c: Float[np.ndarray, "*S"]
) -> Float32[np.ndarray, "*S"]:
    """Returns numbers in [0, 1) that look random, equal for equal (whole-numbered) arguments."""
    mixed = np.sin(a * np.float32(12.9898) + b * np.float32(78.233) + c * np.float32(37.719)) * np.float32(437.585)
    return (mixed - np.floor(mixed)).astype(np.float32)

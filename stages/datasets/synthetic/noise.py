"""Repeatable texture: tables of smooth noise made once from fixed seeds, looked up by metres on a surface."""

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, Float32

__all__ = ["hash01", "noise2", "noise3"]

_SIZE = 256  # texels along a side; a power of two, so that wrapping is a bit mask
_TABLES = 6
_OCTAVES = ((8, 1.0), (16, 0.7), (32, 0.6), (64, 0.5), (128, 0.4), (256, 0.35))


@cache
def _tables() -> Float32[np.ndarray, "K S S"]:
    """Make the tables: octaves of value noise, unit standard deviation, clipped at 2.5."""
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
    """Return noise of zero mean and unit deviation at surface coordinates in metres, ``scale`` texels a metre."""
    return _tables()[table % _TABLES][_texel(v, scale), _texel(u, scale)]


def noise3(
    x: Float[np.ndarray, "*S"], y: Float[np.ndarray, "*S"], z: Float[np.ndarray, "*S"], scale: float, table: int
) -> Float32[np.ndarray, "*S"]:
    """Return noise at points in metres: one table cut along a slanted plane, so it varies along all three axes."""
    return noise2(x + np.float32(0.41) * z, y + np.float32(0.67) * z, scale, table)


def hash01(
    a: Float[np.ndarray, "*S"], b: Float[np.ndarray, "*S"], c: Float[np.ndarray, "*S"]
) -> Float32[np.ndarray, "*S"]:
    """Return numbers in [0, 1) that look random, equal for equal (whole-numbered) arguments."""
    mixed = np.sin(a * np.float32(12.9898) + b * np.float32(78.233) + c * np.float32(37.719)) * np.float32(437.585)
    return (mixed - np.floor(mixed)).astype(np.float32)

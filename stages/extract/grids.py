"""Small dense matrices that carry values between grids of different strides over one image.

All grids share image fractions in [0, 1]; a grid of n cells whose image spans ``extent`` of them has cells of
``1 / extent`` each, the last one possibly hanging over the image's edge. Every operation on a map is separable: one
matrix for rows, one for columns.
"""

import itertools
import math

import numpy as np
from jaxtyping import Float

__all__ = ["cell_bounds", "overlap_matrix", "resize_matrix", "sample_matrix", "seed_points"]


def cell_bounds(cells: int, extent: float) -> Float[np.ndarray, "cells 2"]:
    """First and last image fraction of each cell, cut off where the image ends (float64)."""
    edges = np.minimum(np.arange(cells + 1) / extent, 1.0)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def overlap_matrix(
    rows: int, row_extent: float, columns: int, column_extent: float
) -> Float[np.ndarray, "rows columns"]:
    """Length, in image fractions, that each cell of one grid shares with each cell of another (float64); sums to 1."""
    first, second = cell_bounds(rows, row_extent), cell_bounds(columns, column_extent)
    start = np.maximum(first[:, None, 0], second[None, :, 0])
    end = np.minimum(first[:, None, 1], second[None, :, 1])
    return np.maximum(end - start, 0.0)


def resize_matrix(cells: int, extent: float, from_cells: int, from_extent: float) -> Float[np.ndarray, "cells source"]:
    """Weights of an antialiased bilinear resize between two grids (float64); every row sums to 1.

    The filter is a triangle as wide as the larger of the two cells, centred on the target cell.
    """
    centres = (np.arange(cells) + 0.5) / extent * from_extent
    return _triangle(centres, from_cells, max(1.0, from_extent / extent))


def sample_matrix(points: Float[np.ndarray, "points"], cells: int, extent: float) -> Float[np.ndarray, "points cells"]:
    """Weights of bilinear sampling at image fractions ``points`` (float64); the outermost values are repeated."""
    return _triangle(points * extent, cells, 1.0)


def seed_points(count: int, height: int, width: int) -> Float[np.ndarray, "count 2"]:
    """Place ``count`` points (u, v), in image fractions, on a grid with about square spacing.

    The number of rows follows the aspect of the image; the rows share the points as evenly as whole numbers allow.
    """
    rows = min(count, max(1, round(math.sqrt(count * height / width))))
    first = [row * count // rows for row in range(rows + 1)]
    return np.array(
        [
            ((column + 0.5) / (after - before), (row + 0.5) / rows)
            for row, (before, after) in enumerate(itertools.pairwise(first))
            for column in range(after - before)
        ]
    )


def _triangle(centres: np.ndarray, cells: int, radius: float) -> np.ndarray:
    """Triangle filter weights [targets, cells] at ``centres`` (in source cells), normalised over existing cells."""
    inside = np.clip(centres, 0.5, max(0.5, cells - 0.5))
    distance = np.abs(np.arange(cells) + 0.5 - inside[:, None])
    weights = np.maximum(1.0 - distance / radius, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)

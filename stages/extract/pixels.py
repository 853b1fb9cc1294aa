"""The vectors that pixels are grouped by: taps, position and colour, each part kept on the grid it came from.

Small dense matrices carry values between grids of different strides over one image. All grids share image fractions in
[0, 1]; a grid of n cells whose image spans ``extent`` of them has cells of ``1 / extent`` each, the last one possibly
hanging over the image's edge. Every operation on a map is separable: one matrix for rows, one for columns.

A coarse tap is multiplied at its own resolution; only the similarities are resized to the grouping grid, not the
channels. The result equals that of one joint map on the grouping grid, up to rounding, at a fraction of the cost.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = [
    "PixelVectors",
    "cell_bounds",
    "colour_vectors",
    "overlap_matrix",
    "position_vectors",
    "resize_matrix",
    "sample_matrix",
    "seed_points",
    "tap_vectors",
]

#: A channel that varies less than this over an image is constant up to float16 rounding, and says nothing.
FLAT = 1e-4
COLOUR_SPAN = 2.0  #: deviations either side of the mean colour that the half turn of a colour spans

Matrices = tuple[Float[Tensor, "rows _"], Float[Tensor, "columns _"]]


class PixelVectors:
    """Vectors of unit length, one a cell of the grouping grid, made of parts of given weights.

    Each part is (weight, map [B, C, h, w], matrices that resize it to the grid, or None where it lies on the grid); at
    least one lies on the grid. A centre is a vector over the channels of all parts: [B, N, sum of C].
    """

    def __init__(self, parts: Sequence[tuple[float, Tensor, Matrices | None]]) -> None:
        weighted = [(math.sqrt(weight) * values, matrices) for weight, values, matrices in parts]
        self._fine = torch.cat([values for values, matrices in weighted if matrices is None], dim=1)
        self._coarse = [(values, matrices) for values, matrices in weighted if matrices is not None]
        self._channels = [values.shape[1] for values in (self._fine, *(values for values, _ in self._coarse))]
        squares = self._fine.square().sum(1)
        for values, matrices in self._coarse:
            squares += _squared_lengths(values, *matrices)
        self._length = squares.sqrt().clamp_min(1e-12).flatten(1).unsqueeze(1)

    def similarity(self, centres: Float[Tensor, "batch agents joint"]) -> Float[Tensor, "batch agents cells"]:
        """Inner product of each centre with each cell's vector."""
        first, *rest = torch.split(centres, self._channels, dim=2)
        products = first @ self._fine.flatten(2)
        for part, (values, matrices) in zip(rest, self._coarse, strict=True):
            cells = (part @ values.flatten(2)).reshape(*part.shape[:2], *values.shape[2:])
            products += resized(cells, *matrices).flatten(2)
        return products.div_(self._length)

    def sums(
        self, weights: Float[Tensor, "#batch agents cells"], area: Float[Tensor, "cells"] | float = 1.0
    ) -> Float[Tensor, "batch agents joint"]:
        """Sum of the cells' vectors, each times its ``area`` and its weight for each agent."""
        scaled = weights * (area / self._length)
        cells = scaled.reshape(*scaled.shape[:2], *self._fine.shape[2:])
        parts = [
            (scaled, self._fine),
            *(((rows.T @ cells @ columns).flatten(2), values) for values, (rows, columns) in self._coarse),
        ]
        return torch.cat([shares @ values.flatten(2).transpose(1, 2) for shares, values in parts], dim=2)


def tap_vectors(
    values: Float[Tensor, "batch channels height width"], area: Float[Tensor, "height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Standardises each channel over the image, then scales the vector of each pixel to unit length.

    Channels that are nearly constant (deviation up to ``FLAT``) become 0.

    ``area``: share of the image that each cell covers; sums to 1.
    """
    shares = area.flatten()
    centred = values - (values.flatten(2) @ shares)[:, :, None, None]
    deviation = (centred.square().flatten(2) @ shares).sqrt()[:, :, None, None]
    centred *= torch.where(deviation > FLAT, 1.0 / deviation.clamp_min(FLAT), 0.0)
    return centred.div_(centred.norm(dim=1, keepdim=True).clamp_min(1e-12))


def colour_vectors(pictures: UInt8[Tensor, "batch 3 height width"], shrink: Matrices) -> Float[Tensor, "batch 6 _h _w"]:
    """Returns colours as points on circles on the grid of ``shrink``, invariant to brightness and contrast.

    Colours are taken relative to the picture's mean, in deviations of all its values from it.
    """
    colours = pictures.to(torch.float32)
    centred = colours.sub_(colours.mean((2, 3), keepdim=True))
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1.0)
    return _on_circles(resized(centred.div_(2 * COLOUR_SPAN * deviation).add_(0.5).clamp_(0.0, 1.0), *shrink))


def position_vectors(
    v: Float[np.ndarray, "rows"], u: Float[np.ndarray, "columns"], image_size: tuple[int, int]
) -> Float[np.ndarray, "4 rows columns"]:
    """Returns vectors of unit length for the cells with centres at image fractions ``v`` (down) and ``u`` (across).

    The longer side of the image, whose ``image_size`` is (height, width), spans half a turn of a circle.
    """
    height, width = (side / max(image_size) for side in image_size)
    down, across = np.meshgrid(math.pi * height * v, math.pi * width * u, indexing="ij")
    return np.stack([np.cos(across), np.sin(across), np.cos(down), np.sin(down)]) / math.sqrt(2)


def resized(
    maps: Float[Tensor, "*batch height width"],
    rows: Float[Tensor, "rows height"],
    columns: Float[Tensor, "columns width"],
) -> Float[Tensor, "*batch rows columns"]:
    """Resizes maps to another grid by a matrix for rows and one for columns."""
    return rows @ maps @ columns.T


def _squared_lengths(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared lengths [B, H, W] of the vectors that ``resized`` maps [B, C, h, w] have.

    Only rows are resized; along each of them the products of every two columns stand in for the many channels.
    """
    lines = (rows @ maps).permute(0, 2, 3, 1)
    return ((columns @ (lines @ lines.transpose(2, 3))) * columns).sum(3)


def _on_circles(values: Tensor) -> Tensor:
    """Maps [B, 3, h, w] in [0, 1] to vectors [B, 6, h, w] of unit length; more distant values have a smaller cosine."""
    angles = math.pi * values
    return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(values.shape[1])


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
    """Places ``count`` points (u, v), in image fractions, on a grid with about square spacing.

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

"""The vectors that pixels are grouped by: taps, position and colour, each part kept on the grid it came from.

A coarse tap enters every product at its own size; what is carried to the grouping grid are the similarities, not its
channels. The values are those of one joint map on the grouping grid, up to rounding, for a fraction of its cost.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["PixelVectors", "colour_vectors", "position_vectors", "resized", "tap_vectors"]

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
    """Vectors of unit length, or 0: each channel less its mean over the image, over its deviation; then each pixel.

    ``area``: share of the image that each cell covers; sums to 1.
    """
    shares = area.flatten()
    centred = values - (values.flatten(2) @ shares)[:, :, None, None]
    deviation = (centred.square().flatten(2) @ shares).sqrt()[:, :, None, None]
    centred *= torch.where(deviation > FLAT, 1.0 / deviation.clamp_min(FLAT), 0.0)
    return centred.div_(centred.norm(dim=1, keepdim=True).clamp_min(1e-12))


def colour_vectors(pictures: UInt8[Tensor, "batch 3 height width"], shrink: Matrices) -> Float[Tensor, "batch 6 _h _w"]:
    """Colours on circles, on the grid that ``shrink`` leads to, whatever a picture's brightness and contrast.

    Colours are taken relative to the picture's mean, in deviations of all its values from it.
    """
    colours = pictures.to(torch.float32)
    centred = colours.sub_(colours.mean((2, 3), keepdim=True))
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1.0)
    return _on_circles(resized(centred.div_(2 * COLOUR_SPAN * deviation).add_(0.5).clamp_(0.0, 1.0), *shrink))


def position_vectors(v: np.ndarray, u: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Vectors [4, h, w] of unit length; the image's longer side is half a turn."""
    height, width = (side / max(image_size) for side in image_size)
    down, across = np.meshgrid(math.pi * height * v, math.pi * width * u, indexing="ij")
    return np.stack([np.cos(across), np.sin(across), np.cos(down), np.sin(down)]) / math.sqrt(2)


def resized(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Carry maps [..., h, w] to another grid by a matrix for rows and one for columns."""
    return rows @ maps @ columns.T


def _squared_lengths(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared lengths [B, H, W] of the vectors that ``resized`` maps [B, C, h, w] have.

    Only rows are resized; along each of them the products of every two columns stand in for the many channels.
    """
    lines = (rows @ maps).permute(0, 2, 3, 1)
    return ((columns @ (lines @ lines.transpose(2, 3))) * columns).sum(3)


def _on_circles(values: Tensor) -> Tensor:
    """Map [B, 3, h, w] in [0, 1] to vectors [B, 6, h, w] of unit length; values further apart have a smaller cosine."""
    angles = math.pi * values
    return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(values.shape[1])

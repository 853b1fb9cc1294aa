"""Depth for the 2D branch: the depth of the projected points as a sparse map on the grid of each tap.

The maps are encoded by sparsity-invariant convolutions (Uhrig et al., "Sparsity Invariant CNNs", 3DV 2017): each
divides by the number of known cells in its window, so that sensors with more or fewer beams give similar features.
"""

from math import log

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from ...cache.schema import TapSpec
from .images import ImageBatch

__all__ = ["DepthEncoder", "depth_map", "scaled_depth"]

NEAR, FAR = 1.0, 100.0  #: metres; depths are clipped to this range, which is the same for all data sets
WIDTH = 16


class DepthEncoder(nn.Module):
    """Maps the depth on the grid of one tap to ``channels``; 0 where no point is within two cells.

    The last layer starts at zero, so that an untrained encoder changes nothing.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)])
        self.project = nn.Conv2d(WIDTH, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, depth: Float32[Tensor, "views 1 height width"]) -> Float[Tensor, "views channels height width"]:
        """Encode the maps of ``depth_map``."""
        known = (depth > 0).float()
        values = scaled_depth(depth)
        for layer in self.layers:
            share = avg_pool2d(known, 3, stride=1, padding=1)
            sums = conv2d(values * known, layer.weight, padding=1)
            values = (sums / share.clamp(min=1 / 9) + layer.bias.view(1, -1, 1, 1)).relu()
            known = (share > 0).float()
        projected: Tensor = self.project(values)
        return projected * known


def scaled_depth(metres: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns the logarithm of ``metres``, clipped to ``NEAR`` and ``FAR``, as values from -1 to 1."""
    return 2 / log(FAR / NEAR) * (metres.clamp(NEAR, FAR) / NEAR).log() - 1


def depth_map(images: ImageBatch, spec: TapSpec) -> Float32[Tensor, "views 1 height width"]:
    """Returns the depth in metres of the nearest point in each cell of the grid of ``spec``; 0 without a point.

    Depths below ``NEAR`` count as ``NEAR``.

    Raises:
        ValueError: the batch was made without depths.
    """
    if images.projection_depth is None:
        raise ValueError("These images have no depths; the batch was made without them")
    views, height, width = len(images.sample), spec.height, spec.width
    row = (images.projection_uv[:, 1] * spec.extent[0]).long().clamp(max=height - 1)
    column = (images.projection_uv[:, 0] * spec.extent[1]).long().clamp(max=width - 1)
    cell = (images.projection_view * height + row) * width + column
    nearest = images.projection_depth.new_full((views * height * width,), torch.inf)
    nearest = nearest.scatter_reduce(0, cell, images.projection_depth.clamp(min=NEAR), "amin")
    return torch.where(nearest.isinf(), 0.0, nearest).view(views, 1, height, width)

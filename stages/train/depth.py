"""Depth for the 2D branch: the depth of the projected points as a sparse map on the grid of each tap.

The maps are encoded by sparsity-invariant convolutions (Uhrig et al., "Sparsity Invariant CNNs", 3DV 2017): each
divides by the number of known cells in its window, so that sensors with more or fewer beams give similar features.
"""

from math import log

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

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
        self.layers = nn.ModuleList([_SparseConvolution(1, WIDTH), _SparseConvolution(WIDTH, WIDTH)])
        self.project = nn.Conv2d(WIDTH, channels, 1, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, depth: Float32[Tensor, "views 1 height width"]) -> Float[Tensor, "views channels height width"]:
        """Encodes the maps of ``depth_map``."""
        values, known = scaled_depth(depth), (depth > 0).float()
        for layer in self.layers:
            values, known = layer(values, known)
        encoded: Tensor = self.project(values) * known
        return encoded


class _SparseConvolution(nn.Module):
    """A 3 x 3 convolution of the known cells, divided by their share of the window, and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.sum = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels, 1, 1))
        bound = (9 * in_channels) ** -0.5  # PyTorch's for a bias of the convolution
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self, values: Float[Tensor, "views channels height width"], known: Float32[Tensor, "views 1 height width"]
    ) -> tuple[Float[Tensor, "views out height width"], Float32[Tensor, "views 1 height width"]]:
        """Returns the values, and the cells that are known now: those with a known one in their window."""
        share = avg_pool2d(known, 3, stride=1, padding=1)
        means = self.sum(values * known) / share.clamp(min=1 / 9)
        return (means + self.bias).relu(), (share > 0).float()


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

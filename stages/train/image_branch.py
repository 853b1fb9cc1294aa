"""The 2D branch: resizes all taps to one grid, applies two convolutions, and samples at the projected points.

The image features are frozen, so this is the only trained part of the 2D network (FPN style, sum over taps). It may
read the depth of the points too, on the grid of each tap (as MM2D3D does; ``depth``).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import gcd

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from ...cache.schema import TapSpec
from .depth import DepthEncoder, depth_map
from .images import ImageBatch
from .parallel import rand_per_sample

__all__ = ["ImageBranch", "resize_matrix", "sample_points"]


class ImageBranch(nn.Module):
    """Maps prepared feature maps to point features [P, ``channels``]; ``tap_channels`` is the width of each tap.

    With ``depth`` an encoding of the points' depths is added to each tap; in training, whole samples go without it with
    probability ``depth_dropout``.
    """

    def __init__(
        self, *, tap_channels: Mapping[str, int], channels: int, depth: bool = False, depth_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.depth_dropout = depth_dropout
        self.taps = tuple(tap_channels)
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in tap_channels.values())
        self.mix = nn.Sequential(*_convolution(channels), *_convolution(channels))
        self.depth = nn.ModuleList(DepthEncoder(channels=channels) for _ in tap_channels) if depth else None

    def forward(self, images: ImageBatch) -> Float[Tensor, "points channels"]:
        """Returns features of the batch's points: the mean over the views that show each, 0 if none does."""
        specs = [images.specs[tap] for tap in self.taps]
        finest = max(specs, key=lambda spec: spec.height * spec.width)
        kept = self._with_depth(images)
        total: Tensor | None = None
        for place, (tap, spec, lateral) in enumerate(zip(self.taps, specs, self.lateral, strict=True)):
            values = lateral(images.maps[tap])
            if self.depth is not None:
                values = values + kept * self.depth[place](depth_map(images, spec))
            resized = _resize(values, spec, finest)
            total = resized if total is None else total + resized
        return sample_points(self.mix(total), images, finest.extent)

    def _with_depth(self, images: ImageBatch) -> Float[Tensor, "views 1 1 1"] | float:
        """Returns 0 for the views of the samples that are trained without depth, and 1 for the others."""
        if self.depth is None or not (self.training and self.depth_dropout):
            return 1.0
        sample = images.sample
        kept = rand_per_sample(images.layout.samples, sample.device) >= self.depth_dropout
        return kept[sample].float().view(-1, 1, 1, 1)


@lru_cache(maxsize=256)
def resize_matrix(
    cells: int, extent: float, source_cells: int, source_extent: float, device: torch.device | None = None
) -> Float[Tensor, "cells source"]:
    """Returns bilinear weights that sample a row of ``source_cells`` at the centres of ``cells`` cells.

    Both rows cover the same image side with their first ``extent`` cells, so that padding does not shift the samples;
    beyond the outermost centres, the border value is used.
    """
    centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * (source_extent / extent) - 0.5
    centre = centre.clamp(0, source_cells - 1)
    distance = (centre.unsqueeze(1) - torch.arange(source_cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0).float().to(device)


def sample_points(
    maps: Float[Tensor, "views channels height width"], images: ImageBatch, extent: tuple[float, float]
) -> Float[Tensor, "points channels"]:
    """Samples ``maps`` at every projection and averages over a point's views; the image spans ``extent`` cells."""
    views, channels, height, width = maps.shape
    cells, weights = _corners(images, height, width, extent)
    weights = weights / images.view_counts[images.projection_point].unsqueeze(1)
    table = maps.float().permute(0, 2, 3, 1).reshape(views * height * width, channels)
    values = embedding_bag(cells, table, per_sample_weights=weights, mode="sum")
    return values.new_zeros(len(images.view_counts), channels).index_add(0, images.projection_point, values)


def _corners(
    images: ImageBatch, height: int, width: int, extent: tuple[float, float]
) -> tuple[Int64[Tensor, "projections 4"], Float[Tensor, "projections 4"]]:
    """Returns the four cells around each projection, as rows of the flattened maps, and their bilinear weights."""
    x = (images.projection_uv[:, 0] * extent[1] - 0.5).clamp(0, width - 1)
    y = (images.projection_uv[:, 1] * extent[0] - 0.5).clamp(0, height - 1)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    along, down = x - left, y - top
    first = images.projection_view * (height * width)
    cells = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right], 1)
    weights = torch.stack([(1 - down) * (1 - along), (1 - down) * along, down * (1 - along), down * along], 1)
    return cells + first.unsqueeze(1), weights


def _resize(
    values: Float[Tensor, "views channels h w"], spec: TapSpec, target: TapSpec
) -> Float[Tensor, "views channels height width"]:
    if (spec.height, spec.width, spec.extent) == (target.height, target.width, target.extent):
        return values
    rows = resize_matrix(target.height, target.extent[0], spec.height, spec.extent[0], values.device)
    columns = resize_matrix(target.width, target.extent[1], spec.width, spec.extent[1], values.device)
    return rows @ (values @ columns.T)


def _convolution(channels: int) -> Sequence[nn.Module]:
    """Makes a 3 x 3 convolution with GroupNorm, which normalises each image alone and stores no source statistics."""
    return (
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.GroupNorm(gcd(8, channels), channels),
        nn.ReLU(),
    )

"""The image part of a batch: raw feature maps, agents and point projections, and normalisation per image."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Float16, Float32, Int64, Integer, Num, UInt8
from torch import Tensor

from ...cache.schema import CHANNEL_AXES, TapSpec
from .ragged import Ragged

__all__ = ["ImageBatch", "coverage", "decode"]

#: A channel that varies less than this over an image is constant up to float16 rounding, and is set to 0.
FLAT = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """The V images (views) of all samples of a batch, and the M projections of its points.

    ``maps``: tap -> [V, C, h, w] and ``agents``: tap -> [V, N, C], as stored in the source until ``prepared``;
    ``geometry`` [V, N, 5]: mass, centre (u, v), extent (su, sv) in image fractions. ``sample`` and ``camera`` are the
    indices of a view's sample in the batch and of its camera. A projection is a row of the batch's points, a row of the
    views, and (u, v) as fractions of the image; ``view_counts`` is the number of views that show each point;
    ``layout`` is the layout of the views padded by sample. ``scales`` decodes maps and agents that are stored as 8-bit
    codes, under ``features/<tap>`` and ``agents/<tap>``. ``assignment`` are the four agents that each cell of ``grid``
    belongs to most, ``membership`` their shares of 255; None if the source has none. ``statistics`` of ``prepared``
    images are the mean and then the standard deviation of each channel of all taps over the image.
    ``projection_depth`` are metres along the camera's optical axis; None unless the batch is made with depths.
    """

    specs: Mapping[str, TapSpec]
    maps: Mapping[str, Num[Tensor, "views _ _ _"]]
    agents: Mapping[str, Num[Tensor, "views agents _"]]
    geometry: Float[Tensor, "views agents 5"]
    sample: Int64[Tensor, "views"]
    camera: Int64[Tensor, "views"]
    projection_point: Int64[Tensor, "projections"]
    projection_view: Int64[Tensor, "projections"]
    projection_uv: Float32[Tensor, "projections 2"]
    view_counts: Int64[Tensor, "points"]
    layout: Ragged
    scales: Mapping[str, Float16[Tensor, "views 2 _"]] = field(default_factory=dict)
    grid: TapSpec | None = None
    assignment: Integer[Tensor, "views 4 height width"] | None = None
    membership: UInt8[Tensor, "views 4 height width"] | None = None
    statistics: Float32[Tensor, "views measures"] | None = None
    projection_depth: Float32[Tensor, "projections"] | None = None

    def mean_over_views(self, values: Float[Tensor, "views"]) -> Float[Tensor, "points"]:
        """Returns the mean of ``values`` over the views that show each point; 0 if none does."""
        total = values.new_zeros(len(self.view_counts)).index_add(
            0, self.projection_point, values[self.projection_view]
        )
        return total / self.view_counts.clamp(min=1)

    def prepared(self, *, normalise: bool) -> "ImageBatch":
        """Returns the images with maps and agents in float32, decoded and, with ``normalise``, normalised per channel.

        The map of a uint8 tap is scaled to 0 to 1. Mean and standard deviation are taken over the cells that lie on the
        image, without padding; agents, which are weighted means of the same cells, are normalised by the same values.
        """
        maps, agents, statistics = {}, {}, []
        for tap, raw in self.maps.items():
            values = self._decoded("features", tap, raw)
            mean, deviation = _moments(values, self.specs[tap])
            statistics += [mean, deviation]
            if normalise:
                scale = torch.where(deviation > FLAT, 1 / deviation.clamp(min=FLAT), 0.0)
                values = (values - mean[:, :, None, None]) * scale[:, :, None, None]
            maps[tap] = values
            if tap in self.agents:
                queries = self._decoded("agents", tap, self.agents[tap])
                agents[tap] = (queries - mean.unsqueeze(1)) * scale.unsqueeze(1) if normalise else queries
        return replace(
            self,
            maps=maps,
            agents=agents,
            geometry=self.geometry.float(),
            scales={},
            statistics=torch.cat(statistics, 1),
        )

    def _decoded(self, folder: str, tap: str, raw: Num[Tensor, "views *row"]) -> Float32[Tensor, "views *row"]:
        if raw.dtype != torch.uint8:
            return raw.float()
        if self.specs[tap].dtype == "uint8":
            return raw.float() / 255
        return decode(raw, self.scales[f"{folder}/{tap}"], CHANNEL_AXES[folder])


def decode(
    codes: UInt8[Tensor, "views *row"], scales: Float16[Tensor, "views 2 channels"], channel_axis: int
) -> Float32[Tensor, "views *row"]:
    """Decodes the codes of a cache with the profile ``compact``, bit for bit as ``cache.codec.decode`` does.

    The 7 bits of an e4m3 code below its sign are the upper bits of a float16 that is 256 times smaller. On the CPU,
    shifting them is faster than a look-up table or torch's float8.
    """
    halves = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
    scale, offset = scales.float().unbind(1)
    spread = [1] * codes.ndim
    spread[0], spread[channel_axis] = scale.shape
    return halves.float().mul_((scale * 256).view(spread)).add_(offset.view(spread))


def coverage(cells: int, extent: float) -> Float32[Tensor, "cells"]:
    """Returns the fraction of each cell that lies on the image, which spans the first ``extent`` cells."""
    return (extent - torch.arange(cells, dtype=torch.float32)).clamp(0, 1)


@lru_cache(maxsize=64)
def _cell_weights(
    height: int, width: int, extent: tuple[float, float], device: torch.device
) -> Float32[Tensor, "cells"]:
    weights = torch.outer(coverage(height, extent[0]), coverage(width, extent[1])).flatten()
    return (weights / weights.sum()).to(device)


def _moments(
    values: Float32[Tensor, "views channels height width"], spec: TapSpec
) -> tuple[Float32[Tensor, "views channels"], Float32[Tensor, "views channels"]]:
    """Returns mean and standard deviation of each channel over each image, without padding."""
    weights = _cell_weights(spec.height, spec.width, spec.extent, values.device)
    cells = values.flatten(2)
    mean = cells @ weights
    deviation = ((cells - mean.unsqueeze(2)).square() @ weights).sqrt()
    return mean, deviation

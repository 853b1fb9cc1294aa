"""The image side of a batch: raw feature maps, agents, where points fall, and their normalisation per image."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Float16, Float32, Int64, Integer, Num, UInt8
from torch import Tensor

from ...cache.schema import CHANNEL_AXES, TapSpec
from .ragged import Ragged

__all__ = ["ImageBatch", "coverage", "decode"]

#: A channel that varies less than this over an image is constant up to float16 rounding, and is left at zero.
FLAT = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """The V images of a batch, those of all its samples in one list, and the M projections of its points.

    ``maps``: tap -> [V, C, h, w] and ``agents``: tap -> [V, N, C], as the source stored them until ``prepared``;
    ``geometry`` [V, N, 5]: mass, centre (u, v), extent (su, sv) in image fractions. ``sample`` and ``camera`` number a
    view's sample in the batch and its camera in the index. A projection is a row of the batch's points, a row of the
    views, and (u, v) as fractions of the image; ``view_counts`` says how many views show each point, and ``layout`` how
    the views lie in a batch padded by sample. Maps and agents that are codes of 8 bits have what decodes them in
    ``scales``, under ``features/<tap>`` and ``agents/<tap>``. ``assignment`` and ``membership`` name the four agents
    that each cell of ``grid`` belongs to most, and how much of 255 each has; None where the source does not know.
    ``statistics``, once ``prepared``, are the mean and then the deviation of each channel of all taps over its image.
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

    def mean_over_views(self, values: Float[Tensor, "views"]) -> Float[Tensor, "points"]:
        """The mean of a value of the views over those that show each point; 0 where none does."""
        total = values.new_zeros(len(self.view_counts)).index_add(
            0, self.projection_point, values[self.projection_view]
        )
        return total / self.view_counts.clamp(min=1)

    def prepared(self, *, normalise: bool) -> "ImageBatch":
        """Maps and agents in float32 and, where asked, each channel less its mean over its image, over its deviation.

        Codes of 8 bits are decoded; the map of a uint8 tap becomes 0 to 1.

        Mean and deviation are taken over the part of the map that lies on the image, padding left out; agents, which
        are weighted means of the same cells, are shifted and scaled by the same numbers.
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
    """Values of the codes of a cache of the profile ``compact``, bit for bit those of ``cache.codec.decode``.

    The 7 bits of an e4m3 code below its sign are the upper bits of a float16 that is 256 times smaller; the shift is
    faster than a table and than torch's own float8 on the CPU.
    """
    halves = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
    scale, offset = scales.float().unbind(1)
    spread = [1] * codes.ndim
    spread[0], spread[channel_axis] = scale.shape
    return halves.float().mul_((scale * 256).view(spread)).add_(offset.view(spread))


def coverage(cells: int, extent: float) -> Float32[Tensor, "cells"]:
    """The part of each cell, 0 to 1, that lies on the image when the image spans the first ``extent`` cells."""
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
    """Mean and standard deviation of each channel over each image, padding left out."""
    weights = _cell_weights(spec.height, spec.width, spec.extent, values.device)
    cells = values.flatten(2)
    mean = cells @ weights
    deviation = ((cells - mean.unsqueeze(2)).square() @ weights).sqrt()
    return mean, deviation

"""The data model of a feature cache: the shape of each tap's map, and one batch of features in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Float16, Num, UInt8, UInt16

__all__ = ["CHANNEL_AXES", "MEMBERSHIPS_PER_CELL", "ImageFeatures", "TapSpec"]

CHANNEL_AXES = {"features": 1, "agents": 2}  #: axis of the channels of maps and of agents; axis 0 is the image
MEMBERSHIPS_PER_CELL = 4  #: memberships stored for each cell of the grouping grid


@dataclass(frozen=True, kw_only=True)
class TapSpec:
    """One feature map of every image: its address in the UNet (or ``rgb``), its shape, and how it lies on the image.

    ``extent`` is the number of cells, down and across, that the real image spans (its padding left out; may be a
    fraction below ``height`` and ``width``): the image point at fractions (u, v) lies at cell coordinates
    ``x = u * extent[1]``, ``y = v * extent[0]``, cell ``i`` covering ``[i, i + 1)``.
    """

    name: str
    channels: int
    height: int
    width: int
    extent: tuple[float, float]
    dtype: Literal["float16", "uint8"] = "float16"


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Raw (not normalised) features of a batch of V images, in the order they were asked for.

    ``maps``: tap -> [V, C, h, w]; ``agents``: tap -> [V, N, C]; ``geometry``: [V, N, 5] = mass, centre (u, v) and
    extent (su, sv) in image fractions. A feature source gives maps and agents as float16; features that were computed
    elsewhere may be float32. Geometry is float32; the ``rgb`` map is uint8 and has no agents.

    A source of the profile ``compact`` gives maps and agents as uint8 codes; ``scales`` has what decodes them
    (``codec.decode``) under the name of each such array, ``features/<tap>`` or ``agents/<tap>``.

    ``assignment`` and ``membership`` [V, 4, h, w] are the memberships of the cells of the grouping grid (``grid`` of a
    source): the agents that a cell belongs to most, the first one most, and the weight of each in 255ths; index and
    weight 0 where there are fewer agents. They are None where a cache of format 1 has none or a reader wants none.
    """

    maps: Mapping[str, Num[np.ndarray, "images _channels _height _width"]]
    agents: Mapping[str, Num[np.ndarray, "images agents _channels"]]
    geometry: Float[np.ndarray, "images agents 5"]
    scales: Mapping[str, Float16[np.ndarray, "images 2 _channels"]] = field(default_factory=dict)
    assignment: UInt8[np.ndarray, "images 4 _h _w"] | UInt16[np.ndarray, "images 4 _h _w"] | None = None
    membership: UInt8[np.ndarray, "images 4 _h _w"] | None = None

    def first(self, images: int) -> "ImageFeatures":
        """The first ``images`` of them, in the same memory."""
        return ImageFeatures(
            maps={tap: values[:images] for tap, values in self.maps.items()},
            agents={tap: values[:images] for tap, values in self.agents.items()},
            geometry=self.geometry[:images],
            scales={name: values[:images] for name, values in self.scales.items()},
            assignment=None if self.assignment is None else self.assignment[:images],
            membership=None if self.membership is None else self.membership[:images],
        )

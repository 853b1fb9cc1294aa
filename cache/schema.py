"""The data model of a feature cache: the shape of each tap's map, and one batch of features in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Float16, Num, UInt8, UInt16

__all__ = [
    "ASSIGNMENT",
    "CHANNEL_AXES",
    "GEOMETRY",
    "MEMBERSHIP",
    "MEMBERSHIPS",
    "MEMBERSHIPS_PER_CELL",
    "SCALES",
    "ImageFeatures",
    "TapSpec",
    "features_of",
    "named_arrays",
]

CHANNEL_AXES = {"features": 1, "agents": 2}  #: axis of the channels of maps and of agents; axis 0 is the image
MEMBERSHIPS_PER_CELL = 4  #: memberships stored for each cell of the grouping grid
GEOMETRY = "agents/geometry"
ASSIGNMENT, MEMBERSHIP = MEMBERSHIPS = ("agents/assignment", "agents/membership")  #: what format 2 adds
SCALES = "scales/"  #: prefix of the arrays that decode the codes of the profile ``compact``


@dataclass(frozen=True, kw_only=True)
class TapSpec:
    """One feature map of every image: its address in the network (or ``rgb``), its shape, and how it lies on the image.

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
    """Raw (not normalised) features of a batch of V images, in the requested order.

    ``maps``: tap -> [V, C, h, w]; ``agents``: tap -> [V, N, C]; ``geometry``: [V, N, 5] = mass, centre (u, v) and
    extent (su, sv) in image fractions. A feature source gives maps and agents as float16; features that were computed
    elsewhere may be float32. Geometry is float32; the ``rgb`` map is uint8 and has no agents.

    A source of the profile ``compact`` gives maps and agents as uint8 codes; ``scales`` has what decodes them
    (``codec.decode``) under the name of each such array, ``features/<tap>`` or ``agents/<tap>``.

    ``assignment`` and ``membership`` [V, 4, h, w]: for each cell of the grouping grid (``grid`` of a source), the
    indices of its four strongest agents in descending order, and their weights in 255ths. With fewer than four agents,
    the remaining entries are 0. Both are None for a cache of format 1, or if memberships were not requested.
    """

    maps: Mapping[str, Num[np.ndarray, "images _channels _height _width"]]
    agents: Mapping[str, Num[np.ndarray, "images agents _channels"]]
    geometry: Float[np.ndarray, "images agents 5"]
    scales: Mapping[str, Float16[np.ndarray, "images 2 _channels"]] = field(default_factory=dict)
    assignment: UInt8[np.ndarray, "images 4 _h _w"] | UInt16[np.ndarray, "images 4 _h _w"] | None = None
    membership: UInt8[np.ndarray, "images 4 _h _w"] | None = None

    def first(self, images: int) -> "ImageFeatures":
        """Returns the first ``images`` images; the arrays are views of the same memory."""
        return features_of({name: values[:images] for name, values in named_arrays(self).items()})


def named_arrays(features: ImageFeatures) -> dict[str, np.ndarray]:
    """Returns the arrays of ``features`` by their names in the cache."""
    found = {f"features/{tap}": values for tap, values in features.maps.items()}
    found |= {f"agents/{tap}": values for tap, values in features.agents.items()}
    found |= {f"{SCALES}{name}": values for name, values in features.scales.items()}
    found[GEOMETRY] = features.geometry
    memberships = {ASSIGNMENT: features.assignment, MEMBERSHIP: features.membership}
    return found | {name: values for name, values in memberships.items() if values is not None}


def features_of(arrays: Mapping[str, np.ndarray]) -> ImageFeatures:
    """Builds a batch from arrays by name; the inverse of ``named_arrays``. Maps alone get an empty geometry."""
    parts: dict[str, dict[str, np.ndarray]] = {"features": {}, "agents": {}, "scales": {}}
    for name, values in arrays.items():
        folder, _, rest = name.partition("/")
        parts[folder][rest] = values
    agents, images = parts["agents"], next((len(values) for values in arrays.values()), 0)
    return ImageFeatures(
        maps=parts["features"],
        geometry=agents.pop("geometry", np.zeros((images, 0, 5), np.float32)),
        assignment=agents.pop("assignment", None),
        membership=agents.pop("membership", None),
        agents=agents,
        scales=parts["scales"],
    )

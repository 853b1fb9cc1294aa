"""The arrays of a batch by their names in the cache, and the check of agent indices."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8, UInt16

from ..errors import CacheError
from .layout import ASSIGNMENT, GEOMETRY, MEMBERSHIP, SCALES
from .schema import ImageFeatures

__all__ = ["check_agent_indices", "features_of", "named_arrays"]


def check_agent_indices(assignment: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."], agents: int) -> None:
    """Checks that every index of ``assignment`` is below ``agents``.

    Raises:
        CacheError: an index is out of range.
    """
    largest = int(assignment.max(initial=0))
    if largest >= agents:
        raise CacheError(f"{ASSIGNMENT} names agent {largest} of {agents}, counted from 0")


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

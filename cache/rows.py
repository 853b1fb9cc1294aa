"""Converts features in memory to stored rows: checks shapes, clamps to float16, and rejects NaN and infinity."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from ..errors import CacheError
from .codec import encode
from .layout import ASSIGNMENT, GEOMETRY, MEMBERSHIP, MEMBERSHIPS, SCALES, ArrayLayout, CacheLayout
from .schema import CHANNEL_AXES, ImageFeatures

__all__ = [
    "arrays_of",
    "as_stored",
    "check_agent_indices",
    "features_of",
    "named_arrays",
    "stored_arrays",
    "stored_rows",
    "non_finite_rows",
]

_FLOAT16_MAX = float(np.finfo(np.float16).max)


def arrays_of(features: ImageFeatures, layout: CacheLayout, count: int) -> dict[str, np.ndarray]:
    """Returns the computed arrays of ``features`` by their names in the cache; format 1 drops memberships.

    Raises:
        CacheError: an array is missing or unexpected, or its shape or type does not match the layout.
    """
    found = named_arrays(features)
    if layout.grid is None:
        found = {name: values for name, values in found.items() if name not in MEMBERSHIPS}
    if found.keys() != layout.computed.keys():
        missing, extra = sorted(layout.computed.keys() - found.keys()), sorted(found.keys() - layout.computed.keys())
        raise CacheError(f"The features do not fit the cache: missing {missing}, not expected {extra}")
    for name, array in layout.computed.items():
        values, expected = found[name], (count, *array.row_shape)
        kind = values.dtype == array.dtype if array.dtype.kind == "u" else np.issubdtype(values.dtype, np.floating)
        if values.shape != expected or not kind:
            raise CacheError(
                f"{name} is {values.dtype} {values.shape}; the cache stores {array.dtype.name} {expected} of it"
            )
    if layout.grid is not None:
        check_agent_indices(found[ASSIGNMENT], layout.agents)
    return found


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


def non_finite_rows(arrays: Mapping[str, np.ndarray], rows: Sequence[int]) -> dict[int, str]:
    """Returns row -> reason for rows with NaN or infinity in any array; the reason gives the first position."""
    unfit: dict[int, str] = {}
    for name, values in arrays.items():
        if values.dtype.kind == "u":
            continue
        for row, image in zip(rows, values, strict=True):
            wrong = ~np.isfinite(image)
            if row not in unfit and wrong.any():
                place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
                unfit[row] = f"{name} is not finite: {int(wrong.sum())} values, the first at {list(place)}"
    return unfit


def stored_arrays(
    arrays: Mapping[str, np.ndarray],
    layout: CacheLayout,
    rows: Sequence[int],
    failed: Mapping[int, str],
    clamped: dict[str, dict[int, int]],
) -> Iterator[tuple[ArrayLayout, Iterable[np.ndarray]]]:
    """Yields each stored array with its rows (zeros for failed ones); consume the rows before the next array.

    The counts of clamped values are added to ``clamped`` by array and row.
    """
    for name, array in layout.computed.items():
        counts: dict[int, int] = {}
        stored = stored_rows(arrays[name], array, rows, failed, counts)
        if layout.is_quantised(name):
            scales: list[np.ndarray] = []
            yield layout.arrays[name], _coded_rows(stored, array, scales)
            yield layout.arrays[SCALES + name], scales
        else:
            yield array, stored
        if counts:
            clamped[name] = counts


def stored_rows(
    values: np.ndarray, array: ArrayLayout, rows: Sequence[int], failed: Mapping[int, str], clamped: dict[int, int]
) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    """Yields the rows as stored (zeros for failed ones); counts of clamped values are added to ``clamped`` by row."""
    for row, image in zip(rows, values, strict=True):
        if row in failed:
            yield np.zeros(array.row_shape, array.dtype)
            continue
        if array.dtype == np.float16 and image.dtype != np.float16:
            count = int(np.count_nonzero(np.abs(image) > _FLOAT16_MAX))
            if count:
                clamped[row] = count
        yield as_stored(image, array.dtype)


def _coded_rows(
    rows: Iterable[np.ndarray], array: ArrayLayout, scales: list[np.ndarray]
) -> Iterator[UInt8[np.ndarray, "*row"]]:
    """Yields the codes of float16 ``rows``; appends their scales to ``scales``."""
    for row in rows:
        codes, scale = encode(row[None], CHANNEL_AXES[array.name.partition("/")[0]])
        scales.append(scale[0])
        yield codes[0]


def as_stored(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Converts finite ``values`` to ``dtype``, clamped to the range of float16."""
    if dtype == np.float16 and values.dtype != np.float16:
        values = np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX)
    return np.ascontiguousarray(values, dtype=dtype)

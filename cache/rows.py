"""From features in memory to rows on disk: shapes checked, values clamped to float16, NaN and infinity refused."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import CacheError
from .layout import GEOMETRY, ArrayLayout, CacheLayout, Shard
from .schema import ImageFeatures

__all__ = ["arrays_of", "as_stored", "features_of", "stored_rows", "unfit_rows"]

_FLOAT16_MAX = float(np.finfo(np.float16).max)


def arrays_of(features: ImageFeatures, layout: CacheLayout, count: int) -> dict[str, np.ndarray]:
    """Name the arrays of ``features`` as the cache does.

    Raises:
        CacheError: an array is missing or not expected, or its shape or kind of type is not that of the layout.
    """
    found = {f"features/{tap}": values for tap, values in features.maps.items()}
    found |= {f"agents/{tap}": values for tap, values in features.agents.items()}
    found[GEOMETRY] = features.geometry
    if found.keys() != layout.arrays.keys():
        missing, extra = sorted(layout.arrays.keys() - found.keys()), sorted(found.keys() - layout.arrays.keys())
        raise CacheError(f"The features do not fit the cache: missing {missing}, not expected {extra}")
    for name, array in layout.arrays.items():
        values, expected = found[name], (count, *array.row_shape)
        kind = values.dtype == np.uint8 if array.dtype == np.uint8 else np.issubdtype(values.dtype, np.floating)
        if values.shape != expected or not kind:
            raise CacheError(
                f"{name} is {values.dtype} {values.shape}; the cache stores {array.dtype.name} {expected} of it"
            )
    return found


def features_of(arrays: Mapping[str, np.ndarray]) -> ImageFeatures:
    """The inverse of ``arrays_of``: ``features/<tap>``, ``agents/<tap>`` and ``agents/geometry`` as one batch."""
    maps = {name.removeprefix("features/"): values for name, values in arrays.items() if name.startswith("features/")}
    agents = {
        name.removeprefix("agents/"): values
        for name, values in arrays.items()
        if name.startswith("agents/") and name != GEOMETRY
    }
    return ImageFeatures(maps=maps, agents=agents, geometry=arrays[GEOMETRY])


def unfit_rows(arrays: Mapping[str, np.ndarray], shard: Shard) -> dict[int, str]:
    """Rows of ``shard`` that hold NaN or infinity in some array, each with where the first of them stands."""
    unfit: dict[int, str] = {}
    for name, values in arrays.items():
        if values.dtype == np.uint8:
            continue
        for row, image in zip(shard.rows, values, strict=True):
            wrong = ~np.isfinite(image)
            if row not in unfit and wrong.any():
                place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
                unfit[row] = f"{name} is not finite: {int(wrong.sum())} values, the first at {list(place)}"
    return unfit


def stored_rows(
    values: np.ndarray, array: ArrayLayout, shard: Shard, failed: Mapping[int, str], clamped: dict[int, int]
) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    """Yield the rows as they are stored; failed rows as zeros. Counts of clamped values go into ``clamped`` by row."""
    for row, image in zip(shard.rows, values, strict=True):
        if row in failed:
            yield np.zeros(array.row_shape, array.dtype)
            continue
        if array.dtype == np.float16 and image.dtype != np.float16:
            count = int(np.count_nonzero(np.abs(image) > _FLOAT16_MAX))
            if count:
                clamped[row] = count
        yield as_stored(image, array.dtype)


def as_stored(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Finite ``values`` as an array of ``dtype`` keeps them: rounded, and clamped to what float16 can hold."""
    if dtype == np.float16 and values.dtype != np.float16:
        values = np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX)
    return np.ascontiguousarray(values, dtype=dtype)

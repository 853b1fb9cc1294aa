"""Compares two caches: settings, images, arrays, and the rows whose stored values differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..fingerprint import differences
from .reader import FeatureReader

__all__ = ["diff_caches"]


def diff_caches(first: Path | str, second: Path | str) -> dict[str, Any]:
    """Compares two caches by the checksums in their commit records.

    Returns a JSON-ready dictionary: ``equal``; ``fingerprint``, a line for each field that differs; ``images`` and
    ``arrays``, each with what is ``only_first`` and ``only_second``; ``readable``, the same of images that can be read;
    ``rows``: array -> keys of the images whose stored values differ, for arrays that both have in the same shape.

    Raises:
        CacheError: there is no cache in one of them, or its metadata is damaged.
    """
    ours, theirs = FeatureReader(first), FeatureReader(second)
    lines = differences(ours.layout.identity, theirs.layout.identity)
    rows = _shared_rows(ours, theirs)
    readable = [{key for key, ok in zip(r.image_keys, r.available, strict=True) if ok} for r in (ours, theirs)]
    found: dict[str, Any] = {
        "fingerprint": lines,
        "images": _only(ours.image_keys, theirs.image_keys),
        "arrays": _only(list(ours.layout.arrays), list(theirs.layout.arrays)),
        "readable": _only(sorted(readable[0]), sorted(readable[1])),
        "rows": _rows_that_differ(ours, theirs, rows),
    }
    nothing = not lines and not any(found["rows"].values())
    same = nothing and not any(found[kind][side] for kind in ("images", "arrays", "readable") for side in found[kind])
    return {"equal": same, **found}


def _only(first: Sequence[str], second: Sequence[str]) -> dict[str, list[str]]:
    ours, theirs = set(first), set(second)
    return {
        "only_first": [name for name in first if name not in theirs],
        "only_second": [name for name in second if name not in ours],
    }


def _shared_rows(ours: FeatureReader, theirs: FeatureReader) -> np.ndarray:
    """Returns the rows in the first and the second cache of the images readable in both, int64 [images, 2]."""
    places = {key: row for row, key in enumerate(theirs.image_keys)}
    pairs = [(row, places[key]) for row, key in enumerate(ours.image_keys) if key in places]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    return rows[ours.available[rows[:, 0]] & theirs.available[rows[:, 1]]]


def _rows_that_differ(ours: FeatureReader, theirs: FeatureReader, rows: np.ndarray) -> dict[str, list[str]]:
    found = {}
    for name, array in ours.layout.arrays.items():
        other = theirs.layout.arrays.get(name)
        if other is not None and (array.row_shape, array.dtype) == (other.row_shape, other.dtype):
            differ = ours.checksums(name)[rows[:, 0]] != theirs.checksums(name)[rows[:, 1]]
            found[name] = [ours.image_keys[row] for row in rows[differ, 0]]
    return found

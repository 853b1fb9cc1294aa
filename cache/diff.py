"""Compares two caches: settings, images, arrays, and the rows whose stored values differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..fingerprint import differences
from ..progress import track
from .codec import decode
from .reader import FeatureReader
from .rows import named_arrays
from .schema import CHANNEL_AXES, ImageFeatures

__all__ = ["diff_caches"]

_BATCH = 8  #: rows compared at a time


def diff_caches(first: Path | str, second: Path | str, *, values: bool = False) -> dict[str, Any]:
    """Compares two caches by the checksums in their commit records; ``values`` also compares the numbers.

    Returns a JSON-ready dictionary: ``equal``; ``fingerprint``, a line for each field that differs; ``images`` and
    ``arrays``, each with what is ``only_first`` and ``only_second``; ``readable``, the same of images that can be read;
    ``rows``: array -> keys of the images whose stored values differ, for arrays that both have in the same shape; and
    with ``values`` as ``values``: array -> ``max_abs`` difference and ``mean_cosine`` over the images both can read (of
    the profile ``compact`` as decoded).

    Raises:
        CacheError: there is no cache in one of them, its metadata is damaged, or a compared row is damaged.
    """
    ours, theirs = FeatureReader(first), FeatureReader(second)
    lines = differences(ours.layout.identity, theirs.layout.identity)
    rows = _shared_rows(ours, theirs)
    readable = [{key for key, ok in zip(r.image_keys, r.available, strict=True) if ok} for r in (ours, theirs)]
    told: dict[str, Any] = {
        "fingerprint": lines,
        "images": _only(ours.image_keys, theirs.image_keys),
        "arrays": _only(list(ours.layout.arrays), list(theirs.layout.arrays)),
        "readable": _only(sorted(readable[0]), sorted(readable[1])),
        "rows": _rows_that_differ(ours, theirs, rows),
    }
    nothing = not lines and not any(told["rows"].values())
    same = nothing and not any(told[kind][side] for kind in ("images", "arrays", "readable") for side in told[kind])
    return {"equal": same, **told, **({"values": _compared(ours, theirs, rows)} if values else {})}


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


def _compared(ours: FeatureReader, theirs: FeatureReader, rows: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Returns largest difference and mean cosine of every computed array with the same shape in both caches."""
    shapes = [{name: array.row_shape for name, array in reader.layout.computed.items()} for reader in (ours, theirs)]
    names = [name for name, shape in shapes[0].items() if shapes[1].get(name) == shape]
    largest, cosines = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for start in track(range(0, len(rows), _BATCH), "Comparing", -(-len(rows) // _BATCH), "batch"):
        pairs = rows[start : start + _BATCH]
        first, second = (_decoded(r.read(pairs[:, side])) for side, r in enumerate((ours, theirs)))
        for name in names:
            a, b = (values[name].reshape(len(pairs), -1).astype(np.float64) for values in (first, second))
            largest[name] = max(largest[name], float(np.abs(a - b).max()))
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines[name] += float(np.where(lengths > 0, (a * b).sum(axis=1) / np.maximum(lengths, 1e-300), 1.0).sum())
    count = len(rows)
    return {name: {"max_abs": largest[name], "mean_cosine": cosines[name] / count if count else None} for name in names}


def _decoded(features: ImageFeatures) -> dict[str, np.ndarray]:
    arrays = named_arrays(features)
    coded = {
        name: decode(arrays[name], scales, CHANNEL_AXES[name.partition("/")[0]])
        for name, scales in features.scales.items()
    }
    return {**arrays, **coded}

"""Infers the type and the number of columns of raw sweeps, which have no header, from their values.

Each column has its own distribution (x and y spread over tens of metres, z over a few, an intensity is never negative,
a ring is a whole number), so the values repeat with the period of the rows: their means differ most between columns if
the rows have their true length.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

__all__ = ["COLUMNS", "RawRows", "RawType", "are_doubles", "guess_columns", "implausible_fraction", "stored_by_columns"]

RawType = Literal["float32", "float64"]


class RawRows(NamedTuple):
    """How many numbers a row of a raw file has, and their type."""

    columns: int
    dtype: RawType = "float32"

    @property
    def bytes(self) -> int:
        """The size of a row."""
        return self.columns * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.columns} {self.dtype} per point"


#: Suffix of a raw file -> default number of float32 per point.
COLUMNS = {".pcd.bin": 5, ".bin": 4}

_LENGTHS = range(3, 9)
_BLOCK = 840  #: values; a multiple of every length, so that a block begins with x at each of them
_FEWEST, _BLOCKS = 2, 60
_SCALE = 10.0  #: metres
_CLEAR, _TELLING = 1.5, 0.05  #: the chosen length explains this much more than the default, and this share at least
_PAIRS = 32, 4096  #: fewest that tell anything, and how many are looked at
_HALVES, _ODD = (0.25, 512.0), 0.01  #: the upper halves of doubles as float32, and the share that may lie outside
_METRES, _RANDOM = (1e-7, 1e7), 0.2  #: coordinates and intensities, and the share that random bits have outside
_AS_GOOD = 0.95  #: multiples of the true length explain as much as it does
_FEW_BLOCKS, _REPEATED = 10, 0.01  #: blocks in which rows explain at most this share if columns are stored one by one
_PART, _APART = 4096, 0.2  #: values looked at in each column's part of the file, and the share that the parts explain


def are_doubles(values: Float32[np.ndarray, "values"]) -> bool:
    """Whether ``values``, read as float32, are the halves of float64.

    The upper halves of doubles between 1.2e-7 and 3.7e19 are, as float32, 0.25 to 512; the lower ones are random bits,
    or zero where the numbers have few digits. Coordinates in metres are neither.
    """
    pairs = values[: len(values) // 2 * 2].reshape(-1, 2)
    lower, upper = np.abs(pairs[:: max(1, len(pairs) // _PAIRS[1])]).T
    upper, lower = upper[upper > 0], lower[lower > 0]  # neither zeros nor NaN tell anything
    if len(pairs) < _PAIRS[0] or _outside(upper, _HALVES) > _ODD:
        return False
    return _outside(lower, _METRES) > _RANDOM


def implausible_fraction(values: Float[np.ndarray, "*values"]) -> float:
    """Returns the fraction of the values other than 0 with a magnitude outside 1e-7 to 1e7 m; NaN is ignored."""
    numbers = np.abs(values[~np.isnan(values) & (values != 0)])
    return _outside(numbers, _METRES) if len(numbers) else 0.0


def _outside(values: Float[np.ndarray, "values"], bounds: tuple[float, float]) -> float:
    """The share of the values that lie outside; 1 if there are none."""
    return float(((values < bounds[0]) | (values >= bounds[1])).mean()) if len(values) else 1.0


def guess_columns(values: Float[np.ndarray, "values"], default: int) -> int:
    """Returns the length of a row in ``values``, 3 to 8; ``default`` unless another length explains them clearly."""
    blocks = _blocks(values, _BLOCKS)
    if blocks is None:
        return default
    features, known = _features(blocks)
    explained = {length: _explained(features, known, length) for length in _LENGTHS}
    best = next(length for length in _LENGTHS if explained[length] >= _AS_GOOD * max(explained.values()))
    clear = explained[best] > max(_CLEAR * explained.get(default, 0.0), _TELLING)
    return best if clear else default


def stored_by_columns(values: Float[np.ndarray, "values"], columns: int) -> bool:
    """Whether all x come first, then all y, and so on: values that differ between parts of a file and do not repeat."""
    blocks = _blocks(values, _FEW_BLOCKS)
    if blocks is None or len(values) % columns or _explained(*_features(blocks), columns) > _REPEATED:
        return False
    parts = values.reshape(columns, -1)
    parts = parts[:, :: max(1, parts.shape[1] // _PART)]
    return _explained(*_features(parts.T.ravel()), columns) > _APART


def _blocks(values: Float[np.ndarray, "values"], most: int) -> Float[np.ndarray, "chosen"] | None:
    """Returns at most ``most`` blocks of ``values``, evenly spread; None if there are too few."""
    blocks = len(values) // _BLOCK
    if blocks < _FEWEST:
        return None
    chosen = np.unique(np.linspace(0, blocks - 1, most).astype(int))
    found: np.ndarray = values[: blocks * _BLOCK].reshape(blocks, _BLOCK)[chosen].ravel()
    return found


def _features(
    values: Float[np.ndarray, "values"],
) -> tuple[Float64[np.ndarray, "features values"], Bool[np.ndarray, "values"]]:
    """Returns what tells columns apart, 0 where a value is not a number, and where it is one."""
    known = ~np.isnan(values)  # missing returns tell nothing
    with np.errstate(invalid="ignore"):  # bytes that are no numbers, of a compressed file for example
        sample = np.where(known, values, 0).astype(np.float64)
    signed = np.arctan(sample / _SCALE)
    return np.stack([signed, np.abs(signed), sample == np.round(sample)]) * known, known


def _explained(
    features: Float64[np.ndarray, "features values"], known: Bool[np.ndarray, "values"], length: int
) -> float:
    """Share of the variance that lies between columns, for the feature where it is largest."""
    counts = known.reshape(-1, length).sum(axis=0)
    means = features.reshape(len(features), -1, length).sum(axis=1) / np.maximum(counts, 1)
    total = max(int(counts.sum()), 1)
    mean = features.sum(axis=1, keepdims=True) / total
    within = (np.square(features - mean) * known).sum(axis=1)
    between = (np.square(means - mean) * counts).sum(axis=1)
    return float((between / np.where(within > 0, within, 1)).max())

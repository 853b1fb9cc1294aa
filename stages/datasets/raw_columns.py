"""Raw sweeps are rows of float32 without a header: how many a row has is told by their values.

Each column has a distribution of its own (x and y spread over tens of metres, z over a few, an intensity is never
negative, a ring is whole), so that the values repeat with the period of the rows: their mean differs most between
columns if the rows have their true length.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64

__all__ = ["COLUMNS", "guess_columns"]

#: Suffix of a raw file -> default number of float32 per point.
COLUMNS = {".pcd.bin": 5, ".bin": 4}

_LENGTHS = range(3, 9)
_BLOCK = 840  #: values; a multiple of every length, so that a block begins with x at each of them
_FEWEST, _BLOCKS = 2, 60
_SCALE = 10.0  #: metres
_CLEAR, _TELLING = 1.5, 0.05  #: the chosen length explains this much more than the default, and this share at least
_AS_GOOD = 0.95  #: multiples of the true length explain as much as it does


def guess_columns(values: Float32[np.ndarray, "values"], default: int) -> int:
    """Returns the length of a row in ``values``, 3 to 8; ``default`` unless another length explains them clearly."""
    blocks = len(values) // _BLOCK
    if blocks < _FEWEST:
        return default
    chosen = np.unique(np.linspace(0, blocks - 1, _BLOCKS).astype(int))
    with np.errstate(invalid="ignore"):  # bytes that are no numbers, of a compressed file for example
        sample = np.nan_to_num(values[: blocks * _BLOCK].reshape(blocks, _BLOCK)[chosen].ravel().astype(np.float64))
    signed = np.arctan(sample / _SCALE)
    features = np.stack([signed, np.abs(signed), sample == np.round(sample)])
    explained = {length: _explained(features, length) for length in _LENGTHS}
    best = next(length for length in _LENGTHS if explained[length] >= _AS_GOOD * max(explained.values()))
    clear = explained[best] > max(_CLEAR * explained.get(default, 0.0), _TELLING)
    return best if clear else default


def _explained(features: Float64[np.ndarray, "features values"], length: int) -> float:
    """Share of the variance that lies between columns, for the feature where it is largest."""
    means: Float[np.ndarray, "features columns"] = features.reshape(len(features), -1, length).mean(axis=1)
    within = features.var(axis=1)
    return float((means.var(axis=1) / np.where(within > 0, within, 1)).max())

"""Which predictions are sure enough to learn from: per class the surer half, and all that are nearly certain.

The rule is that of xMUDA (after BDL): of the points predicted as a class, those are dropped whose confidence lies below
the class's median or 0.9, whichever is lower. Confidences are kept as 16-bit fractions, so that the median of any
number of points comes from a histogram.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8, UInt16

__all__ = ["Confidences", "confidence_codes", "sure"]

ENOUGH = 0.9  #: a point this sure is never dropped
CODES = 2**16


def confidence_codes(probabilities: Float[np.ndarray, "points"]) -> UInt16[np.ndarray, "points"]:
    """Confidences from 0 to 1 as multiples of 1 / 65535."""
    return np.round(probabilities.astype(np.float64) * (CODES - 1)).astype(np.uint16)


class Confidences:
    """How many points of each class were predicted with each confidence."""

    def __init__(self, classes: int) -> None:
        self.counts: Int64[np.ndarray, "classes codes"] = np.zeros((classes, CODES), np.int64)

    def add(self, labels: UInt8[np.ndarray, "points"], codes: UInt16[np.ndarray, "points"]) -> None:
        """Count the points predicted as ``labels`` with the confidences ``codes``."""
        places = labels.astype(np.int64) * CODES + codes
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)

    def thresholds(self) -> Float64[np.ndarray, "classes"]:
        """The least confidence of each class that is kept; the median of an even number is the lower of the two."""
        below = self.counts.cumsum(axis=1)
        middle = (below[:, -1:] + 1) // 2
        medians = (below >= middle).argmax(axis=1) / (CODES - 1)
        return np.minimum(medians, ENOUGH)


def sure(
    labels: UInt8[np.ndarray, "points"],
    codes: UInt16[np.ndarray, "points"],
    thresholds: Float64[np.ndarray, "classes"],
) -> Bool[np.ndarray, "points"]:
    """Whether each point is kept."""
    return codes / (CODES - 1) >= thresholds[labels]

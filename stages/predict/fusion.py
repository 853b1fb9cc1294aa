"""Fuses the predictions of the 2D head, the 3D head and the LiDAR-only head for each point by a rule.

| rule | score of a class, with the 2D head (2), the 3D head (3), the LiDAR-only head (L) and the image's weight w |
|---|---|
| ``product-prior`` | log pL + w (log p2 - log prior) + w (log p3 - log prior); no L: log p3 + w (log p2 - log prior) |
| ``product`` | the same without the prior |
| ``sum`` | p2 + p3: xM, as published |

``product-prior`` is Bayes' rule for predictions that are independent given the class. Weighted cross entropy makes each
head assume a class prior, which must be divided out of all but one prediction, or it would count several times. The
predictions that depend on an image are tempered by w, the confidence in the image. A point that no image shows has the
prediction of the LiDAR-only head; by ``sum``, or if the network has no such head, that of the 3D head.
"""

import numpy as np
from jaxtyping import Float, Float64

from ..evaluate.settings import FusionRule

__all__ = ["fused_probabilities"]

#: Lower bound of probabilities before the logarithm.
LEAST_PROBABILITY = 1e-12


def fused_probabilities(
    rule: FusionRule,
    probabilities_3d: Float[np.ndarray, "points columns"],
    *,
    probabilities_2d: Float[np.ndarray, "points columns"] | None = None,
    probabilities_lidar: Float[np.ndarray, "points columns"] | None = None,
    image_weight: Float[np.ndarray, "points"] | None = None,
    prior: Float64[np.ndarray, "columns"] | None = None,
) -> Float64[np.ndarray, "points columns"]:
    """Returns the fused prediction of each point by ``rule``; rows sum to 1.

    ``probabilities_2d`` is None without images; a row of it is all 0 if no image shows the point.
    ``probabilities_lidar`` are those of the LiDAR-only head, if the network has one. ``image_weight``, 0 to 1, defaults
    to 1. ``prior`` is that of ``class_prior``, uniform by default; a class with prior 0 gets probability 0 by
    ``product-prior``.
    """
    if rule == "sum":
        both = probabilities_3d if probabilities_2d is None else probabilities_2d + probabilities_3d
        total = both.astype(np.float64)  # the same sum as xM, so that both choose the same class
        return total / total.sum(axis=1, keepdims=True)
    occurs = np.ones(probabilities_3d.shape[1], bool)
    log_prior = np.zeros(len(occurs))
    if rule == "product-prior" and prior is not None:
        occurs = prior > 0
        log_prior[occurs] = np.log(prior[occurs])
    scores = _log(probabilities_3d if probabilities_lidar is None else probabilities_lidar)
    if probabilities_2d is not None:
        weight = np.ones(len(scores)) if image_weight is None else image_weight.astype(np.float64)
        weight = np.where(probabilities_2d.any(axis=1), weight, 0.0)[:, None]
        scores += weight * (_log(probabilities_2d) - log_prior)
        if probabilities_lidar is not None:
            scores += weight * (_log(probabilities_3d) - log_prior)
    scores[:, ~occurs] = -np.inf
    exponential = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def _log(probabilities: Float[np.ndarray, "points columns"]) -> Float64[np.ndarray, "points columns"]:
    return np.log(np.maximum(probabilities.astype(np.float64), LEAST_PROBABILITY))

"""The confusion matrix over points, and the intersection over union (IoU) computed from it."""

import numpy as np
from jaxtyping import Float64, Int64, Integer

from ...errors import DataError
from ..datasets.labels import IGNORE
from .settings import AbsentRule

__all__ = ["class_iou", "confusion_matrix", "mean_iou"]


def confusion_matrix(
    labels: Integer[np.ndarray, "points"], predictions: Integer[np.ndarray, "points"], classes: int
) -> Int64[np.ndarray, "classes classes+1"]:
    """Counts points by label (row) and prediction (column); the last column counts predictions outside 0 to C - 1.

    Points labelled ``IGNORE`` are not counted.

    Raises:
        DataError: the two arrays differ in length, or a label is neither a class nor ``IGNORE``.
    """
    if labels.shape != predictions.shape:
        raise DataError(
            f"There are {len(labels)} labels for {len(predictions)} predictions; each point needs one of both"
        )
    counted = labels != IGNORE
    truth = labels[counted].astype(np.int64)
    if len(truth) and not 0 <= truth.min() <= truth.max() < classes:
        worst = truth.max() if truth.max() >= classes else truth.min()
        raise DataError(f"Label {worst} is not one of {classes} classes (0 to {classes - 1}, or {IGNORE} for ignored)")
    guess = predictions[counted].astype(np.int64)
    guess[(guess < 0) | (guess >= classes)] = classes
    cells = np.bincount(truth * (classes + 1) + guess, minlength=classes * (classes + 1))
    return cells.reshape(classes, classes + 1)


def class_iou(confusion: Int64[np.ndarray, "classes columns"]) -> Float64[np.ndarray, "classes"]:
    """Returns the IoU of each class, TP / (TP + FP + FN); NaN for a class in neither labels nor predictions."""
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion.sum(axis=0)[: len(confusion)] - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(iou: Float64[np.ndarray, "classes"], absent: AbsentRule = "exclude") -> float:
    """Returns the mean over the classes; ``absent`` is how a class in neither labels nor predictions (NaN) counts.

    ``exclude`` leaves it out, ``zero`` and ``one`` give it that IoU.

    Raises:
        DataError: no class is present.
    """
    present = ~np.isnan(iou)
    if not present.any():
        raise DataError("There is no labelled point to score; check the split, the domain and the label merge")
    if absent == "exclude":
        return float(iou[present].mean())
    return float(np.where(present, iou, 0.0 if absent == "zero" else 1.0).mean())

"""Scores predictions frame by frame: those of the 2D head, the 3D head, their sum (xM) and the fused prediction."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

from ...errors import DataError
from ..datasets.labels import IGNORE
from .confusion import class_iou, confusion_matrix, mean_iou
from .metrics import Metrics, Modality, ScoreProtocol
from .settings import AbsentRule

__all__ = ["FramePrediction", "majority_miou", "score_frames"]

#: Bounds in metres of the bins by distance.
DISTANCES = (20.0, 40.0)
DISTANCE_NAMES = ("0-20 m", "20-40 m", "40+ m")


@dataclass(frozen=True, kw_only=True)
class FramePrediction:
    """Labels and predictions of the P points of one frame.

    Probabilities are the softmax over K columns; columns beyond the scored classes are classes outside the list, and
    predicting one counts as an error. ``probabilities_2d`` is None if the frame has no image; its row is all 0 for a
    point that no image shows. ``probabilities_fused`` is the fusion of all predictions by a rule (``predict.fusion``),
    or None. ``distance`` (metres from the sensor) and ``weather``, if known, select the parts of the metrics that the
    points are counted in. ``agents`` is the object agent at each point's pixel, or -1 if there is none or it fills more
    than a tenth of the image; None if unknown. ``dropped`` other points of the sweep have no usable coordinates.
    """

    labels: Int64[np.ndarray, "points"]  #: class ids, or ``IGNORE``
    probabilities_2d: Float[np.ndarray, "points columns"] | None
    probabilities_3d: Float[np.ndarray, "points columns"]
    probabilities_fused: Float[np.ndarray, "points columns"] | None = None
    distance: Float[np.ndarray, "points"] | None = None
    weather: str = ""
    agents: Int64[np.ndarray, "points"] | None = None
    dropped: int = 0

    @property
    def decided(self) -> Int64[np.ndarray, "points"]:
        """The predicted class of each point: the fused one, else that of xM, or of the 3D head without an image."""
        if self.probabilities_fused is not None:
            return self.probabilities_fused.argmax(axis=1)
        both = self.probabilities_3d
        return (both if self.probabilities_2d is None else both + self.probabilities_2d).argmax(axis=1)


def score_frames(
    predictions: Iterable[FramePrediction],
    classes: Sequence[str],
    *,
    absent: AbsentRule = "exclude",
    protocol: ScoreProtocol | None = None,
) -> Metrics:
    """Counts the predictions of all points, in 2D of those that an image shows, in total and by distance and weather.

    xM is the argmax of the sum of both softmaxes; fused predictions are counted if the frames have them.

    Raises:
        DataError: there is no frame, probabilities do not fit the labels or the classes or are NaN, or only some
            frames have a 2D or a fused prediction.
    """
    confusion: dict[Modality, np.ndarray] = {}
    parts: dict[str, dict[str, dict[Modality, np.ndarray]]] = {}
    frames = dropped = 0
    for frame in predictions:
        guesses = _guesses(frame, len(classes), frames)
        if frames and guesses.keys() != confusion.keys():
            raise DataError(
                f"Frame {frames} has predictions {sorted(guesses)}, the ones before have {sorted(confusion)}"
            )
        labels = {modality: _counted(frame, modality) for modality in guesses}
        for modality, guess in guesses.items():
            _count(confusion, modality, confusion_matrix(labels[modality], guess, len(classes)))
        for kind, name, rows in _parts(frame):
            part = parts.setdefault(kind, {}).setdefault(name, {})
            for modality, guess in guesses.items():
                _count(part, modality, confusion_matrix(labels[modality][rows], guess[rows], len(classes)))
        frames += 1
        dropped += frame.dropped
    if not frames:
        raise DataError("There is no frame to score; check the split and the domain")
    return Metrics(
        classes=tuple(classes),
        frames=frames,
        absent=absent,
        confusion=confusion,
        parts=parts,
        protocol=protocol,
        dropped=dropped,
    )


def majority_miou(
    source_counts: Integer[np.ndarray, "source"],
    target_counts: Integer[np.ndarray, "target"],
    absent: AbsentRule = "exclude",
) -> float:
    """Returns the mean IoU on the target of always predicting the most common class of the source's training labels.

    ``source_counts`` and ``target_counts`` are points per class.

    Raises:
        DataError: the counts differ in length, or the target has no labelled point.
    """
    if len(source_counts) != len(target_counts):
        raise DataError(f"The source counts {len(source_counts)} classes, the target {len(target_counts)}")
    if not target_counts.sum():
        raise DataError("There is no labelled point to score; check the split, the domain and the label merge")
    confusion = np.zeros((len(target_counts), len(target_counts) + 1), np.int64)
    confusion[:, source_counts.argmax()] = target_counts
    return mean_iou(class_iou(confusion), absent)


def _counted(frame: FramePrediction, modality: Modality) -> Int64[np.ndarray, "points"]:
    """Returns the labels of the points that ``modality`` predicts, ``IGNORE`` for the others."""
    if modality != "2d" or frame.probabilities_2d is None:
        return frame.labels
    return np.where(frame.probabilities_2d.any(axis=1), frame.labels, IGNORE)


def _count(confusion: dict[Modality, np.ndarray], modality: Modality, counts: np.ndarray) -> None:
    confusion[modality] = confusion.get(modality, 0) + counts


def _parts(frame: FramePrediction) -> Iterator[tuple[str, str, Bool[np.ndarray, "points"]]]:
    """Yields the parts of the metrics that the frame has points of: kind, name, and a mask of the points."""
    if frame.weather:
        yield "weather", frame.weather, np.ones(len(frame.labels), bool)
    if frame.distance is not None:
        bins = np.digitize(frame.distance, DISTANCES)
        for number, name in enumerate(DISTANCE_NAMES):
            yield "distance", name, bins == number


def _guesses(frame: FramePrediction, classes: int, number: int) -> dict[Modality, np.ndarray]:
    """Returns the predicted class of each point, by modality."""
    given: dict[Modality, np.ndarray] = {"3d": frame.probabilities_3d}
    if frame.probabilities_2d is not None:
        given |= {"2d": frame.probabilities_2d, "xm": frame.probabilities_2d + frame.probabilities_3d}
    if frame.probabilities_fused is not None:
        given["fused"] = frame.probabilities_fused
    for modality, values in given.items():
        if len(values) != len(frame.labels) or values.shape[1] < classes:
            raise DataError(
                f"The {modality} prediction of frame {number} has shape {list(values.shape)};"
                f" {len(frame.labels)} labels and {classes} classes need [{len(frame.labels)}, {classes}]"
            )
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        if bad:
            raise DataError(
                f"The {modality} prediction of frame {number} is NaN or infinite at {bad} of {len(values)} points;"
                " the network has diverged: lower train.lr and train again"
            )
    return {modality: values.argmax(axis=1) for modality, values in given.items()}

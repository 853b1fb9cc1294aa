"""Predictions of whole sweeps: points that cameras see from all heads, the others from the 3D head alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int64

from ..datasets.frames import Frame
from ..datasets.readers import reader_of
from ..evaluate.metrics import Modality
from ..evaluate.official import NO_CLASS
from ..evaluate.scores import FramePrediction
from ..train.batch import cloud_batch
from ..train.domain import Domain
from ..train.network import Network
from .inference import cloud_logits, divergence

__all__ = ["SweepPrediction", "sweep_prediction"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepPrediction:
    """Scores of the classes for every point of a sweep, by modality; the largest one is the class.

    ``points`` are those of the file. A row of scores is all 0 where the modality has no prediction: in 2D of a point
    that no image shows, and of a point without usable coordinates.
    """

    points: Float[np.ndarray, "sweep 3"]
    scores: Mapping[Modality, Float[np.ndarray, "sweep classes"]]

    @property
    def decisive(self) -> Modality:
        """The modality that decides: fused, else xM, else that of the 3D head."""
        return next(modality for modality in ("fused", "xm", "3d") if modality in self.scores)

    def classes(self, modality: Modality) -> Int64[np.ndarray, "sweep"]:
        """Returns the class of each point, or ``NO_CLASS``."""
        scores = self.scores[modality]
        return np.where(scores.any(axis=1), scores.argmax(axis=1), NO_CLASS)

    def probabilities(self, modality: Modality) -> Float32[np.ndarray, "sweep classes"]:
        """Returns the scores with rows that sum to 1, or are all 0."""
        scores = self.scores[modality]
        total = scores.sum(axis=1, keepdims=True)
        return np.divide(scores, total, out=np.zeros_like(scores), where=total > 0).astype(np.float32)


def sweep_prediction(
    network: Network, domain: Domain, position: int, frame: Frame, prediction: FramePrediction
) -> SweepPrediction:
    """Returns the prediction of every point of a whole sweep; ``prediction`` has those of the points of ``frame``.

    The other points, which no camera sees, are classified by the 3D head from the whole sweep in all modalities but
    2D, or have no class if the 3D head needs images. The network must be in evaluation mode.

    Raises:
        RunError: the network computed NaN or infinite values: it has diverged.
    """
    index = domain.index
    sweep = reader_of(index).read_sweep(index, int(domain.frames[position]))
    points, usable = sweep.points, sweep.usable
    unseen = usable.copy()
    unseen[frame.source_rows] = False
    cloud = np.zeros((len(points), prediction.probabilities_3d.shape[1]), np.float32)
    if unseen.any() and not network.needs_images:
        plan = replace(network.plan, taps=())
        cloud[usable] = cloud_logits(network, cloud_batch(points[usable], domain.key(position), plan)).softmax(1)
        cloud[~unseen] = 0
    if not np.isfinite(prediction.probabilities_3d).all():
        raise divergence(domain.key(position))
    scores: dict[Modality, np.ndarray] = {"3d": _whole(prediction.probabilities_3d, frame, cloud)}
    if (images := prediction.probabilities_2d) is not None:
        scores["xm"] = _whole(prediction.probabilities_3d + images, frame, cloud)
        scores["2d"] = _whole(images, frame, np.zeros_like(cloud))
    if prediction.probabilities_fused is not None:
        scores["fused"] = _whole(prediction.probabilities_fused, frame, cloud)
    return SweepPrediction(points=points, scores=scores)


def _whole(
    values: Float[np.ndarray, "points classes"], frame: Frame, others: Float32[np.ndarray, "sweep classes"]
) -> Float[np.ndarray, "sweep classes"]:
    """Returns the rows of a frame's points at their rows in the sweep, and those of ``others`` elsewhere."""
    whole = others.astype(values.dtype)
    whole[frame.source_rows] = values
    return whole

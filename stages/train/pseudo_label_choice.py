"""Chooses pseudo labels among predictions: the same rule for labels in files and for those of a teacher in training.

Of the points predicted as a class, those with a confidence below the class's median or 0.9, whichever is lower, are
dropped (xMUDA, after BDL). Confidences are 16-bit fractions, so that the median of any number of points can be computed
from a histogram. Two further rules may drop points: ``agree``, where the 2D and the 3D head do not both predict the
label, and ``vote``, where most points of the same object agent have another label.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8, UInt16

from ...errors import ConfigError

__all__ = ["CODES", "HEADS", "UNSURE", "Candidates", "LabelRule", "confidence_codes", "thresholds"]

HEADS = ("2d", "3d")  #: the columns of labels
UNSURE = 255
ENOUGH = 0.9  #: a point with this confidence is never dropped for its confidence
CODES = 2**16


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Rules that drop a pseudo label besides its confidence.

    ``agree``: the heads predict different classes. ``vote``: most points of its object agent have another label.
    """

    agree: bool = False
    vote: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the rules that apply."""
        return [name for name, holds in vars(self).items() if holds]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Label and confidence of each point for the 2D and the 3D head; ``UNSURE`` and 0 without a prediction.

    Only labels where ``eligible`` holds may be kept.
    """

    labels: UInt8[np.ndarray, "points 2"]
    codes: UInt16[np.ndarray, "points 2"]
    eligible: Bool[np.ndarray, "points 2"]

    @classmethod
    def of(
        cls,
        probabilities_2d: Float[np.ndarray, "points classes"] | None,
        probabilities_3d: Float[np.ndarray, "points classes"],
        *,
        fused: Float[np.ndarray, "points classes"] | None,
        agents: Int64[np.ndarray, "points"] | None,
        rule: LabelRule,
    ) -> "Candidates":
        """Returns the candidates of a prediction; a row of ``probabilities_2d`` is 0 if no image shows the point.

        Each head's label is its own class, or that of the ``fused`` prediction if there is one. ``agents`` is the
        object agent of each point, -1 for none.

        Raises:
            ConfigError: the prediction has too many classes for labels of 8 bits.
        """
        if (classes := probabilities_3d.shape[1]) > UNSURE:
            raise ConfigError(
                f"Pseudo labels have 8 bits and {UNSURE} classes at most, and this network predicts {classes}; merge"
                " classes (data.merge), or train without pseudo labels (train.lam_pl=0)"
            )
        labels = np.full((len(probabilities_3d), len(HEADS)), UNSURE, np.uint8)
        codes = np.zeros(labels.shape, np.uint16)
        for column, own in enumerate((probabilities_2d, probabilities_3d)):
            if own is None:
                continue
            shown = own.any(axis=1)
            values = (own if fused is None else fused)[shown]
            labels[shown, column], codes[shown, column] = values.argmax(axis=1), confidence_codes(values.max(axis=1))
        eligible = np.ones(labels.shape, bool)
        if rule.agree and probabilities_2d is not None:
            shown, label = probabilities_2d.any(axis=1), labels[:, 1]
            heads = [own.argmax(axis=1) == label for own in (probabilities_2d, probabilities_3d)]
            eligible &= (~shown | (heads[0] & heads[1]))[:, None]
        if rule.vote and agents is not None:
            eligible &= np.stack([_elected(column, agents) for column in labels.T], axis=1)
        return cls(labels=labels, codes=codes, eligible=eligible)

    def histogram(self, classes: int) -> Int64[np.ndarray, "heads classes codes"]:
        """Returns the number of points predicted as each class by confidence."""
        counts = np.zeros((len(HEADS), classes * CODES), np.int64)
        for column, row in enumerate(counts):
            labelled = self.labels[:, column] != UNSURE
            bins = self.labels[labelled, column].astype(np.int64) * CODES + self.codes[labelled, column]
            row += np.bincount(bins, minlength=len(row))
        return counts.reshape(len(HEADS), classes, CODES)

    def confident(self, least: Float64[np.ndarray, "heads classes"]) -> UInt8[np.ndarray, "points 2"]:
        """Returns the labels that are eligible and at least as confident as ``least``; otherwise ``UNSURE``."""
        labels = self.labels.copy()
        for column, bounds in enumerate(least):
            labelled = np.flatnonzero(labels[:, column] != UNSURE)
            sure = self.codes[labelled, column] / (CODES - 1) >= bounds[labels[labelled, column]]
            labels[labelled[~(sure & self.eligible[labelled, column])], column] = UNSURE
        return labels


def thresholds(
    counts: Float[np.ndarray, "*rows codes"] | Int64[np.ndarray, "*rows codes"],
) -> Float64[np.ndarray, "*rows"]:
    """Returns the confidence threshold of each row of ``counts``: its lower median, at most ``ENOUGH``."""
    below = counts.cumsum(axis=-1)
    medians = (below >= below[..., -1:] / 2).argmax(axis=-1) / (CODES - 1)
    return np.minimum(medians, ENOUGH)


def confidence_codes(probabilities: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Encodes confidences from 0 to 1 as multiples of 1 / 65535."""
    return np.round(probabilities.astype(np.float64) * (CODES - 1)).astype(np.uint16)


def _elected(labels: UInt8[np.ndarray, "points"], agents: Int64[np.ndarray, "points"]) -> Bool[np.ndarray, "points"]:
    """Returns whether a point has the most frequent label of its agent; True without an agent."""
    named, index = np.unique(agents, return_inverse=True)
    votes = np.bincount(index * (UNSURE + 1) + labels, minlength=len(named) * (UNSURE + 1))
    winner = votes.reshape(len(named), UNSURE + 1).argmax(axis=1)
    return (agents < 0) | (winner[index] == labels)

"""Shares of wrong points by class and by distance from the sensor."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from ...stages.datasets.labels import IGNORE
from .figures import new_figure, png_bytes

if TYPE_CHECKING:
    from ...stages.evaluate.settings import FusionRule
    from ...stages.train.domain import Domain
    from ...stages.train.network import Network

__all__ = ["DISTANCES", "ErrorTally", "errors_picture", "tally_errors"]

DISTANCES = (0.0, 10.0, 20.0, 30.0, 40.0, np.inf)  #: edges of the bins in metres
MAX_FRAMES = 40


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ErrorTally:
    """Counts of labelled points, and of wrong ones among them, by class and distance bin."""

    classes: tuple[str, ...]
    points: Int64[np.ndarray, "classes bins"]
    wrong: Int64[np.ndarray, "classes bins"]

    @property
    def shares(self) -> Float[np.ndarray, "rows bins"]:
        """Per cent of wrong points: a row per class and one for all classes; NaN without points."""
        wrong, points = np.vstack([self.wrong, self.wrong.sum(0)]), np.vstack([self.points, self.points.sum(0)])
        return np.divide(100.0 * wrong, points, out=np.full(points.shape, np.nan), where=points > 0)


def tally_errors(network: "Network", domain: "Domain", fusion: "FusionRule") -> ErrorTally:
    """Predicts at most ``MAX_FRAMES`` frames evenly spread over ``domain``, and counts points wrong by ``fusion``."""
    from ...stages.predict.inference import predict_frames

    spread = np.unique(np.linspace(0, len(domain) - 1, min(MAX_FRAMES, len(domain))).round().astype(int))
    few = dataclasses.replace(domain, frames=domain.frames[spread])
    shape = (len(network.classes), len(DISTANCES) - 1)
    points, wrong = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for prediction in predict_frames(network, few, fusion=fusion, description="errors by distance"):
        labels, counted = prediction.labels, prediction.labels != IGNORE
        cells = labels[counted], np.digitize(np.asarray(prediction.distance), DISTANCES[1:-1])[counted]
        np.add.at(points, cells, 1)
        np.add.at(wrong, cells, prediction.decided[counted] != labels[counted])
    return ErrorTally(classes=network.classes, points=points, wrong=wrong)


def errors_picture(shares: Float[np.ndarray, "rows bins"], title: str, classes: Sequence[str]) -> bytes:
    """Returns a PNG with the heat map of ``ErrorTally.shares``; the last row is over all ``classes``."""
    figure = new_figure(4.8, 3.2)
    axes = figure.add_subplot(1, 1, 1)
    axes.imshow(shares, cmap="Reds", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        share = shares[row, column]
        if not np.isnan(share):
            colour = "white" if share > 60 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    bins = [
        f"{low:.0f}-{high:.0f}" if np.isfinite(high) else f"{low:.0f}+" for low, high in itertools.pairwise(DISTANCES)
    ]
    axes.set_xticks(range(len(bins)), bins, fontsize=7)
    axes.set_yticks(range(len(shares)), [*classes, "all"], fontsize=8)
    axes.set_xlabel("metres", fontsize=8)
    axes.set_title(title, fontsize=9)
    return png_bytes(figure)

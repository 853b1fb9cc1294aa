"""Shares of wrong points by class and by distance from the sensor."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int64

from ...stages.datasets.labels import IGNORE
from .figures import new_figure, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def tally_errors(
    network: "Network", domain: "Domain", output: Literal["3d", "fused"], *, fusion: "FusionRule" = "product-prior"
) -> ErrorTally:
    """Predicts at most ``MAX_FRAMES`` frames evenly spread over ``domain``, and counts wrong points.

    ``output`` chooses the class of the 3D head, or that of all heads, fused by the rule ``fusion``.
    """
    from ...stages.predict.inference import predict_frames

    spread = np.unique(np.linspace(0, len(domain) - 1, min(MAX_FRAMES, len(domain))).round().astype(int))
    few = dataclasses.replace(domain, frames=domain.frames[spread])
    shape = (len(network.classes), len(DISTANCES) - 1)
    points, wrong = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for prediction in predict_frames(network, few, fusion=fusion, description="errors by distance"):
        classes = prediction.decided if output == "fused" else prediction.probabilities_3d.argmax(1)
        labels, counted = prediction.labels, prediction.labels != IGNORE
        cells = labels[counted], np.digitize(np.asarray(prediction.distance), DISTANCES[1:-1])[counted]
        np.add.at(points, cells, 1)
        np.add.at(wrong, cells, classes[counted] != labels[counted])
    return ErrorTally(classes=network.classes, points=points, wrong=wrong)


def errors_picture(
    panels: Mapping[str, Sequence[tuple[str, Float[np.ndarray, "rows bins"]]]], names: Sequence[str]
) -> bytes:
    """Returns a PNG of heat maps: a row per panel, whose titled tables are in per cent; differences in two colours.

    ``names`` are the classes; the last line of each table is over all of them.
    """
    rows, columns = len(panels), max(len(row) for row in panels.values())
    figure = new_figure(1.6 + 3.2 * columns, 0.6 + 2.6 * rows)
    for row, (name, tables) in enumerate(panels.items()):
        for column, (title, values) in enumerate(tables):
            axes = figure.add_subplot(rows, columns, row * columns + column + 1)
            _heat(axes, values, [*names, "all"] if column == 0 else None)
            axes.set_title(f"{name}: {title}" if title else name, fontsize=9)
    return png_bytes(figure)


def _heat(axes: "Axes", values: Float[np.ndarray, "rows bins"], names: Sequence[str] | None) -> None:
    signed = bool((values < 0).any())
    limit = max(float(np.nanmax(np.abs(values), initial=0.0)), 1.0) if signed else 100.0
    axes.imshow(values, cmap="RdBu_r" if signed else "Reds", vmin=-limit if signed else 0, vmax=limit, aspect="auto")
    for row, column in np.ndindex(values.shape):
        if not np.isnan(values[row, column]):
            text = f"{values[row, column]:+.0f}" if signed else f"{values[row, column]:.0f}"
            dark = abs(values[row, column]) > 0.6 * limit
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    bins = [
        f"{low:.0f}-{high:.0f}" if np.isfinite(high) else f"{low:.0f}+" for low, high in itertools.pairwise(DISTANCES)
    ]
    axes.set_xticks(range(len(bins)), bins, fontsize=7)
    axes.set_yticks(range(len(values)), names if names else [""] * len(values), fontsize=8)
    axes.set_xlabel("metres", fontsize=8)

"""Metrics: confusion matrices with the protocol they were counted by, the scores derived from them, file and table."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int64

from ...errors import DataError, MissingDataError, RunError
from ...files import read_json, write_json
from ...version import code_version
from ..datasets.splits import SPLIT_RULE
from .confusion import class_iou, mean_iou
from .settings import AbsentRule, FusionRule

__all__ = ["MODALITIES", "Modality", "Metrics", "ScoreProtocol", "score_table"]

Modality = Literal["2d", "3d", "xm", "fused"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True, kw_only=True)
class ScoreProtocol:
    """Everything needed to compare a score with another one, or to reproduce it."""

    dataset: str
    index: str  #: digest of the data set's index
    cameras: tuple[str, ...]
    domain: str
    split: str
    merge: str
    checkpoint: str
    step: int  #: training steps of the checkpoint
    seed: int
    features: str  #: fingerprint of the feature cache, or of the online extractor
    head: str  #: ``fusion.head``: "distil" or "refine"
    reached: int | None = None  #: steps that the run had done when it was scored; None in earlier files
    planned: int | None = None  #: steps that the run is configured for
    fusion: FusionRule = "sum"  #: rule of the prediction "fused"; earlier files, which have no such key, used this one
    adapt: str = "none"  #: adaptation at test time, see ``adaptation_name``
    split_rule: str = SPLIT_RULE
    code: str = field(default_factory=code_version)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Confusion matrices of the modalities, and how they were counted.

    ``confusion[m]`` is int64 [C, C + 1]: points by label and prediction; the last column counts predictions outside the
    classes. A LiDAR-only run has neither ``2d`` nor ``xm``, and older files have no ``fused``. ``parts`` has the same
    counts for subsets of the points: by kind ("distance", "weather"), then by name. ``dropped`` points have no usable
    coordinates, and are neither predicted nor scored; older files do not count them.
    """

    classes: tuple[str, ...]
    frames: int
    absent: AbsentRule
    confusion: Mapping[Modality, Int64[np.ndarray, "classes columns"]]
    protocol: ScoreProtocol | None = None
    parts: Mapping[str, Mapping[str, Mapping[Modality, Int64[np.ndarray, "classes columns"]]]] = field(
        default_factory=dict
    )
    dropped: int = 0

    def __post_init__(self) -> None:
        expected = (len(self.classes), len(self.classes) + 1)
        shapes = {m: counts.shape for m, counts in self.confusion.items()}
        if "3d" not in shapes or set(shapes.values()) != {expected} or not set(shapes) <= set(MODALITIES):
            raise DataError(
                f"Metrics of {len(self.classes)} classes need confusion matrices {expected}; found {shapes}"
            )
        if self.absent not in get_args(AbsentRule):
            raise DataError(f"Metrics count absent classes as one of {get_args(AbsentRule)}; found {self.absent!r}")

    @property
    def points(self) -> int:
        """Number of labelled points that were scored."""
        return int(self.confusion["3d"].sum())

    @property
    def miou(self) -> dict[Modality, float | None]:
        """Mean IoU by modality, 0 to 1; None for one that was not predicted, or only for points without a label.

        Raises:
            DataError: no labelled point was scored.
        """
        whole = mean_iou(class_iou(self.confusion["3d"]), self.absent)
        return {**{m: self._part_mean(self.confusion.get(m)) for m in MODALITIES}, "3d": whole}

    @property
    def iou(self) -> dict[str, dict[Modality, float | None]]:
        """IoU by class and modality; None for an absent class, and for a modality that was not predicted."""
        columns = {m: class_iou(counts) for m, counts in self.confusion.items()}
        return {
            name: {m: _number(columns[m][row]) if m in columns else None for m in MODALITIES}
            for row, name in enumerate(self.classes)
        }

    @property
    def absent_classes(self) -> dict[Modality, tuple[str, ...]]:
        """Classes that occur neither in the labels nor in the predictions, by modality."""
        return {
            m: tuple(name for name, value in zip(self.classes, class_iou(counts), strict=True) if np.isnan(value))
            for m, counts in self.confusion.items()
        }

    @property
    def part_miou(self) -> dict[str, dict[str, dict[Modality, float | None]]]:
        """Mean IoU by kind of part, part and modality; None if no labelled point was scored."""
        return {
            kind: {name: {m: self._part_mean(counts.get(m)) for m in MODALITIES} for name, counts in parts.items()}
            for kind, parts in self.parts.items()
        }

    def _part_mean(self, counts: Int64[np.ndarray, "classes columns"] | None) -> float | None:
        return mean_iou(class_iou(counts), self.absent) if counts is not None and counts.sum() else None

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics as JSON values, which ``from_json`` reads."""
        part_miou = self.part_miou
        return {
            "miou": self.miou,
            "iou": self.iou,
            "points": self.points,
            "dropped": self.dropped,
            "frames": self.frames,
            "classes": list(self.classes),
            "absent": self.absent,
            "absent_classes": {m: list(names) for m, names in self.absent_classes.items()},
            "confusion": {m: counts.tolist() for m, counts in self.confusion.items()},
            "parts": {
                kind: {
                    name: {
                        "miou": part_miou[kind][name],
                        "points": int(counts["3d"].sum()),
                        "confusion": {m: values.tolist() for m, values in counts.items()},
                    }
                    for name, counts in parts.items()
                }
                for kind, parts in self.parts.items()
            },
            "protocol": None if self.protocol is None else asdict(self.protocol),
        }

    @classmethod
    def from_json(cls, values: Any) -> "Metrics":
        """Returns the metrics from the values of ``to_json``.

        Raises:
            DataError: a key is missing, or its value is invalid.
        """
        try:
            protocol = values["protocol"]
            if protocol is not None:
                protocol = ScoreProtocol(**{**protocol, "cameras": tuple(protocol["cameras"])})
            return cls(
                classes=tuple(values["classes"]),
                frames=int(values["frames"]),
                absent=values["absent"],
                confusion=_counts(values["confusion"]),
                protocol=protocol,
                parts={
                    kind: {name: _counts(part["confusion"]) for name, part in parts.items()}
                    for kind, parts in values.get("parts", {}).items()
                },
                dropped=int(values.get("dropped", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"These are not the values of metrics ({error!r}); run 'xd3d evaluate' again") from error

    def save(self, path: Path) -> None:
        """Writes the metrics to a JSON file, atomically.

        Raises:
            RunError: there is no protocol; a stored score must record how it was counted.
        """
        if self.protocol is None:
            raise RunError(f"The score for {path} has no protocol; give score_frames one before the score is stored")
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Metrics":
        """Reads metrics from a JSON file.

        Raises:
            MissingDataError: there is no such file.
            DataError: it holds no score metrics.
        """
        try:
            values = read_json(path)
        except FileNotFoundError as error:
            raise MissingDataError(f"No scores in {path}; make them with: xd3d evaluate") from error
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON ({error}); run 'xd3d evaluate' again") from error
        try:
            return cls.from_json(values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def score_table(metrics: Metrics) -> str:
    """Returns the scores as a text table: class, points and IoU in percent by modality; the mean, also of each part."""
    labelled = metrics.confusion["3d"].sum(axis=1)
    parts = {name: counts for parts in metrics.parts.values() for name, counts in parts.items()}
    width = max(len(name) for name in (*metrics.classes, *parts, "mean"))
    lines = [f"{'class':{width}}  {'points':>11}  {'2D':>6}  {'3D':>6}  {'xM':>6}  {'fused':>6}"]
    for (name, values), points in zip(metrics.iou.items(), labelled, strict=True):
        lines.append(f"{name:{width}}  {int(points):>11,}  {_percents(values)}")
    lines.append(f"{'mean':{width}}  {metrics.points:>11,}  {_percents(metrics.miou)}")
    means = {name: values for kind in metrics.part_miou.values() for name, values in kind.items()}
    for name, counts in parts.items():
        lines.append(f"{name:{width}}  {int(counts['3d'].sum()):>11,}  {_percents(means[name])}")
    if metrics.dropped:
        lines.append(f"{metrics.dropped:,} points have no usable coordinates, and are not scored")
    absent = sorted({name for names in metrics.absent_classes.values() for name in names})
    if absent:
        how = {"exclude": "left out of the mean", "zero": "counted as 0", "one": "counted as 1"}[metrics.absent]
        lines.append(f"neither labelled nor predicted, {how}: {', '.join(absent)}")
    return "\n".join(lines)


def _counts(values: Mapping[Modality, Any]) -> dict[Modality, np.ndarray]:
    return {m: np.array(counts, np.int64) for m, counts in values.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _percents(values: Mapping[Modality, float | None]) -> str:
    return "  ".join(f"{'-':>6}" if values[m] is None else f"{100 * (values[m] or 0.0):6.2f}" for m in MODALITIES)

"""The score card: confusion matrices with their protocol, the scores that follow, its file and its table."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int64

from ...errors import DataError, MissingDataError, RunError
from ...files import read_json, write_json
from .confusion import class_iou, mean_iou
from .protocol import ScoreProtocol
from .settings import AbsentRule

__all__ = ["MODALITIES", "Modality", "ScoreCard", "score_table"]

Modality = Literal["2d", "3d", "xm", "fused"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True, kw_only=True)
class ScoreCard:
    """Confusion matrices of the modalities, and how they were counted.

    ``confusion[m]`` is int64 [C, C + 1]: points by label and prediction, the last column for predictions outside the
    list. A LiDAR-only run has neither ``2d`` nor ``xm``, and older cards have no ``fused``. ``parts`` are the same
    counts of parts of the points: by kind ("distance", "weather"), then by name.
    """

    classes: tuple[str, ...]
    frames: int
    absent: AbsentRule
    confusion: Mapping[Modality, Int64[np.ndarray, "classes columns"]]
    protocol: ScoreProtocol | None = None
    parts: Mapping[str, Mapping[str, Mapping[Modality, Int64[np.ndarray, "classes columns"]]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        expected = (len(self.classes), len(self.classes) + 1)
        shapes = {m: counts.shape for m, counts in self.confusion.items()}
        if "3d" not in shapes or set(shapes.values()) != {expected} or not set(shapes) <= set(MODALITIES):
            raise DataError(
                f"A card of {len(self.classes)} classes needs confusion matrices {expected}; found {shapes}"
            )
        if self.absent not in get_args(AbsentRule):
            raise DataError(f"A card counts absent classes as one of {get_args(AbsentRule)}; found {self.absent!r}")

    @property
    def points(self) -> int:
        """Labelled points that were scored."""
        return int(self.confusion["3d"].sum())

    @property
    def miou(self) -> dict[Modality, float | None]:
        """Mean IoU by modality, 0 to 1; None for one that was not predicted, or in 2D at no labelled point.

        Raises:
            DataError: not one labelled point was scored.
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
        """Classes that are neither in the labels nor in the predictions, by modality."""
        return {
            m: tuple(name for name, value in zip(self.classes, class_iou(counts), strict=True) if np.isnan(value))
            for m, counts in self.confusion.items()
        }

    @property
    def part_miou(self) -> dict[str, dict[str, dict[Modality, float | None]]]:
        """Mean IoU by kind of part, part and modality; None where no labelled point was scored."""
        return {
            kind: {name: {m: self._part_mean(counts.get(m)) for m in MODALITIES} for name, counts in parts.items()}
            for kind, parts in self.parts.items()
        }

    def _part_mean(self, counts: Int64[np.ndarray, "classes columns"] | None) -> float | None:
        return mean_iou(class_iou(counts), self.absent) if counts is not None and counts.sum() else None

    def to_json(self) -> dict[str, Any]:
        """The card as JSON values; ``from_json`` reads them back."""
        part_miou = self.part_miou
        return {
            "miou": self.miou,
            "iou": self.iou,
            "points": self.points,
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
    def from_json(cls, values: Any) -> "ScoreCard":
        """The card that ``to_json`` wrote.

        Raises:
            DataError: a key is missing or its value has a wrong form.
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"These are not the values of a score card ({error!r}); run 'xd3d evaluate' again"
            ) from error

    def save(self, path: Path) -> None:
        """Write the card to a JSON file, atomically.

        Raises:
            RunError: the card has no protocol; a score that is kept must say how it was counted.
        """
        if self.protocol is None:
            raise RunError(f"The score for {path} has no protocol; give score_frames one before the score is stored")
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "ScoreCard":
        """Read a card from a JSON file.

        Raises:
            MissingDataError: there is no such file.
            DataError: it holds no score card.
        """
        try:
            values = read_json(path)
        except FileNotFoundError as error:
            raise MissingDataError(f"No scores in {path}; make them with: xd3d evaluate") from error
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON ({error}); run 'xd3d evaluate' again") from error
        return cls.from_json(values)


def score_table(card: ScoreCard) -> str:
    """The scores as lines of text: class, points, IoU in percent for each reading; the mean, and that of each part."""
    labelled = card.confusion["3d"].sum(axis=1)
    parts = {name: counts for parts in card.parts.values() for name, counts in parts.items()}
    width = max(len(name) for name in (*card.classes, *parts, "mean"))
    lines = [f"{'class':{width}}  {'points':>11}  {'2D':>6}  {'3D':>6}  {'xM':>6}  {'fused':>6}"]
    for (name, values), points in zip(card.iou.items(), labelled, strict=True):
        lines.append(f"{name:{width}}  {int(points):>11,}  {_percents(values)}")
    lines.append(f"{'mean':{width}}  {card.points:>11,}  {_percents(card.miou)}")
    means = {name: values for kind in card.part_miou.values() for name, values in kind.items()}
    for name, counts in parts.items():
        lines.append(f"{name:{width}}  {int(counts['3d'].sum()):>11,}  {_percents(means[name])}")
    absent = sorted({name for names in card.absent_classes.values() for name in names})
    if absent:
        how = {"exclude": "left out of the mean", "zero": "counted as 0", "one": "counted as 1"}[card.absent]
        lines.append(f"neither labelled nor predicted, {how}: {', '.join(absent)}")
    return "\n".join(lines)


def _counts(values: Mapping[Modality, Any]) -> dict[Modality, np.ndarray]:
    return {m: np.array(counts, np.int64) for m, counts in values.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _percents(values: Mapping[Modality, float | None]) -> str:
    return "  ".join(f"{'-':>6}" if values[m] is None else f"{100 * (values[m] or 0.0):6.2f}" for m in MODALITIES)

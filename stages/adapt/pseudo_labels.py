"""Makes pseudo labels: predicts all frames, part by part, then keeps the confident predictions of each class.

A part that was written is not predicted again when the run is resumed; the labels appear whole or not at all.

The rule is that of xMUDA (after BDL): of the points predicted as a class, those are dropped whose confidence is below
the class's median or 0.9, whichever is lower. Confidences are kept as 16-bit fractions, so the median of any number of
points comes from a histogram.
"""

import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8, UInt16

from ...errors import DataError, MissingDataError
from ...files import write_atomic, write_json
from ...fingerprint import fingerprint_digest
from ...locks import exclusive_lock
from ..datasets.arrays import load_archive
from ..evaluate.scores import FramePrediction
from ..train.pseudo_labels import FORMAT, FRAMES, HEADS, LABELS, MANIFEST, UNSURE, PseudoLabels

__all__ = ["Confidences", "confidence_codes", "make_pseudo_labels", "sure"]

PART = 64  #: frames
PREDICTED = "predicted"
ENOUGH = 0.9  #: a point this sure is never dropped
CODES = 2**16


def make_pseudo_labels(
    folder: Path,
    *,
    identity: Mapping[str, Any],
    frames: int,
    classes: Sequence[str],
    predict: Callable[[int], Iterable[FramePrediction]],
) -> PseudoLabels:
    """Make the pseudo labels of ``frames`` frames in ``folder``, or go on; sound ones that are there are returned.

    ``predict`` gives the predictions from a frame on, in order; their labels are not looked at.

    Raises:
        DataError: a prediction is not finite.
        RunError: another process makes them now.
    """
    there = _sound(folder)
    if there is not None and not (folder / PREDICTED).exists():
        return there
    with exclusive_lock(folder, work="makes pseudo labels"):
        if _sound(folder) is None:
            (folder / MANIFEST).unlink(missing_ok=True)
            _refine(folder, identity, classes, _predicted(folder, frames, predict))
        shutil.rmtree(folder / PREDICTED, ignore_errors=True)
        return PseudoLabels.open(folder)


def _sound(folder: Path) -> PseudoLabels | None:
    """The finished labels in ``folder``; None where there are none, or damaged ones."""
    try:
        there = PseudoLabels.open(folder)
        there.verify()
    except (DataError, MissingDataError):
        return None
    return there


def _predicted(folder: Path, frames: int, predict: Callable[[int], Iterable[FramePrediction]]) -> int:
    """Predict what is not predicted yet; the number of parts there are then."""
    (folder / PREDICTED).mkdir(exist_ok=True)
    for left_over in folder.rglob("*.partial"):
        left_over.unlink()
    parts = -(-frames // PART)
    done = _whole_parts(folder, parts)
    if done < parts:
        predictions = iter(predict(done * PART))
        for number, part in enumerate(iter(lambda: list(islice(predictions, PART)), []), start=done):
            _write_part(_part(folder, number), part, number * PART)
    return parts


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Predictions of consecutive frames: points a frame, and label and confidence of each point by head."""

    lengths: Int64[np.ndarray, "frames"]
    labels: UInt8[np.ndarray, "points 2"]
    codes: UInt16[np.ndarray, "points 2"]


def _part(folder: Path, number: int) -> Path:
    return folder / PREDICTED / f"{number:06d}.npz"


def _whole_parts(folder: Path, parts: int) -> int:
    """How many parts from the first on are written and sound."""
    for number in range(parts):
        try:
            _read_part(_part(folder, number))
        except (OSError, ValueError):
            return number
    return parts


def _read_part(path: Path) -> _Part:
    """Read a part; its zip archive checks the crc32 of every array."""
    lengths, labels, codes = load_archive(path, ("lengths", "labels", "codes"))
    return _Part(lengths=lengths, labels=labels, codes=codes)


def _write_part(path: Path, predictions: Sequence[FramePrediction], first: int) -> None:
    heads = [_decided(frame, first + place) for place, frame in enumerate(predictions)]
    arrays = {
        "lengths": np.array([len(labels) for labels, _ in heads], np.int64),
        "labels": np.concatenate([labels for labels, _ in heads]),
        "codes": np.concatenate([codes for _, codes in heads]),
    }
    write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def _decided(
    frame: FramePrediction, number: int
) -> tuple[UInt8[np.ndarray, "points 2"], UInt16[np.ndarray, "points 2"]]:
    """The likeliest class of each point for each head, and its confidence; ``UNSURE`` where a head does not see it.

    Where there is a fused prediction, every head is to learn that, else its own.
    """
    labels = np.full((len(frame.probabilities_3d), len(HEADS)), UNSURE, np.uint8)
    codes = np.zeros(labels.shape, np.uint16)
    for column, own in enumerate((frame.probabilities_2d, frame.probabilities_3d)):
        if own is None:
            continue
        values = own
        if frame.probabilities_fused is not None:
            values = np.where(own.any(axis=1, keepdims=True), frame.probabilities_fused, 0)
        if not np.isfinite(values).all():
            raise DataError(
                f"The {HEADS[column]} prediction of frame {number} is not finite; the network has diverged: lower"
                " train.lr and train again"
            )
        shown = values.any(axis=1)
        labels[shown, column] = values[shown].argmax(axis=1)
        codes[shown, column] = confidence_codes(values[shown].max(axis=1))
    return labels, codes


def _refine(folder: Path, identity: Mapping[str, Any], classes: Sequence[str], parts: int) -> None:
    """Write the labels that are sure, the table of frames, and last what they are."""
    found = [Confidences(len(classes)) for _ in HEADS]
    for part in _parts(folder, parts):
        for column, confidences in enumerate(found):
            there = part.labels[:, column] != UNSURE
            confidences.add(part.labels[there, column], part.codes[there, column])
    thresholds = [each.thresholds() for each in found]
    kept = np.zeros((len(HEADS), len(classes)), np.int64)
    frames = _write_labels(folder, parts, thresholds, kept)
    write_atomic(folder / FRAMES, lambda file: np.save(file, frames, allow_pickle=False))
    columns = ("predicted", "kept", "threshold")
    facts = {
        "format": FORMAT,
        "identity": dict(identity),
        "frames": len(frames),
        "heads": [head for head, each in zip(HEADS, found, strict=True) if each.counts.any()],
        "classes": {
            head: {
                name: dict(zip(columns, values, strict=True))
                for name, *values in zip(
                    classes,
                    each.counts.sum(axis=1).tolist(),
                    kept[column].tolist(),
                    thresholds[column].tolist(),
                    strict=True,
                )
            }
            for column, (head, each) in enumerate(zip(HEADS, found, strict=True))
        },
        "crc32": zlib.crc32(frames.tobytes()),
    }
    write_json(folder / MANIFEST, {**facts, "digest": fingerprint_digest(facts)})


def _write_labels(
    folder: Path, parts: int, thresholds: Sequence[np.ndarray], kept: Int64[np.ndarray, "heads classes"]
) -> Int64[np.ndarray, "frames 2"]:
    """Write the refined labels of every part, count those that are kept, and return the table of frames."""
    table: list[tuple[int, int]] = []
    points = int(sum(part.lengths.sum() for part in _parts(folder, parts)))

    def write(file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (points, len(HEADS))}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]  # numpy leaves it untyped
        end = 0
        for part in _parts(folder, parts):
            labels = _kept(part, thresholds)
            for row, column in zip(kept, labels.T, strict=True):
                row += np.bincount(column[column != UNSURE], minlength=len(row))
            for frame in np.split(labels, part.lengths.cumsum()[:-1]):
                end += len(frame)
                table.append((end, zlib.crc32(frame.tobytes())))
                file.write(frame.tobytes())

    write_atomic(folder / LABELS, write)
    return np.array(table, np.int64).reshape(-1, 2)


def _parts(folder: Path, parts: int) -> Iterator[_Part]:
    return (_read_part(_part(folder, number)) for number in range(parts))


def _kept(part: _Part, thresholds: Sequence[np.ndarray]) -> UInt8[np.ndarray, "points 2"]:
    labels = part.labels.copy()
    for column, least in enumerate(thresholds):
        there = np.flatnonzero(labels[:, column] != UNSURE)
        unsure = ~sure(labels[there, column], part.codes[there, column], least)
        labels[there[unsure], column] = UNSURE
    return labels


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

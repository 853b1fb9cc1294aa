"""Makes pseudo labels: predicts all frames in parts, then keeps the confident predictions of each class.

When a stopped run is resumed, parts that are already written are not predicted again. The labels appear atomically.

The rule is that of xMUDA (after BDL): of the points predicted as a class, those with a confidence below the class's
median or 0.9, whichever is lower, are dropped. Confidences are stored as 16-bit fractions, so that the median of any
number of points can be computed from a histogram.
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

__all__ = ["Confidences", "confidence_codes", "make_pseudo_labels", "is_confident"]

PART = 64  #: frames per part
PREDICTED = "predicted"
ENOUGH = 0.9  #: a point with this confidence is never dropped
CODES = 2**16


def make_pseudo_labels(
    folder: Path,
    *,
    identity: Mapping[str, Any],
    frames: int,
    classes: Sequence[str],
    predict: Callable[[int], Iterable[FramePrediction]],
) -> PseudoLabels:
    """Make the pseudo labels of ``frames`` frames in ``folder``, or resume; valid existing ones are returned.

    ``predict`` returns the predictions from a given frame on, in order; their labels are not used.

    Raises:
        DataError: a prediction is not finite.
        RunError: another process is making them.
    """
    existing = _open_valid(folder)
    if existing is not None and not (folder / PREDICTED).exists():
        return existing
    with exclusive_lock(folder, work="makes pseudo labels"):
        if _open_valid(folder) is None:
            (folder / MANIFEST).unlink(missing_ok=True)
            _select(folder, identity, classes, _predicted(folder, frames, predict))
        shutil.rmtree(folder / PREDICTED, ignore_errors=True)
        return PseudoLabels.open(folder)


def _open_valid(folder: Path) -> PseudoLabels | None:
    """Returns the finished labels in ``folder``; None if there are none, or they are damaged."""
    try:
        existing = PseudoLabels.open(folder)
        existing.verify()
    except (DataError, MissingDataError):
        return None
    return existing


def _predicted(folder: Path, frames: int, predict: Callable[[int], Iterable[FramePrediction]]) -> int:
    """Predict the parts that are missing; returns the number of all parts."""
    (folder / PREDICTED).mkdir(exist_ok=True)
    for stale in folder.rglob("*.partial"):
        stale.unlink()
    parts = -(-frames // PART)
    done = _valid_parts(folder, parts)
    if done < parts:
        predictions = iter(predict(done * PART))
        for number, part in enumerate(iter(lambda: list(islice(predictions, PART)), []), start=done):
            _write_part(_part(folder, number), part, number * PART)
    return parts


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Predictions of consecutive frames: points per frame, and label and confidence of each point by head."""

    lengths: Int64[np.ndarray, "frames"]
    labels: UInt8[np.ndarray, "points 2"]
    codes: UInt16[np.ndarray, "points 2"]


def _part(folder: Path, number: int) -> Path:
    return folder / PREDICTED / f"{number:06d}.npz"


def _valid_parts(folder: Path, parts: int) -> int:
    """Returns the number of valid parts before the first that is missing or damaged."""
    for number in range(parts):
        try:
            _read_part(_part(folder, number))
        except (OSError, ValueError):
            return number
    return parts


def _read_part(path: Path) -> _Part:
    """Read a part; the zip archive verifies the crc32 of every array."""
    lengths, labels, codes = load_archive(path, ("lengths", "labels", "codes"))
    return _Part(lengths=lengths, labels=labels, codes=codes)


def _write_part(path: Path, predictions: Sequence[FramePrediction], first: int) -> None:
    heads = [_decided(frame, number) for number, frame in enumerate(predictions, start=first)]
    arrays = {
        "lengths": np.array([len(labels) for labels, _ in heads], np.int64),
        "labels": np.concatenate([labels for labels, _ in heads]),
        "codes": np.concatenate([codes for _, codes in heads]),
    }
    write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def _decided(
    frame: FramePrediction, number: int
) -> tuple[UInt8[np.ndarray, "points 2"], UInt16[np.ndarray, "points 2"]]:
    """Returns the most likely class of each point for each head, and its confidence; ``UNSURE`` without a prediction.

    If there is a fused prediction, every head learns from it, otherwise from its own.
    """
    labels = np.full((len(frame.probabilities_3d), len(HEADS)), UNSURE, np.uint8)
    codes = np.zeros(labels.shape, np.uint16)
    for column, values in enumerate((frame.probabilities_2d, frame.probabilities_3d)):
        if values is None:
            continue
        if frame.probabilities_fused is not None:
            values = np.where(values.any(axis=1, keepdims=True), frame.probabilities_fused, 0)
        if not np.isfinite(values).all():
            raise DataError(
                f"The {HEADS[column]} prediction of frame {number} is not finite; the network has diverged: lower"
                " train.lr and train again"
            )
        shown = values.any(axis=1)
        labels[shown, column] = values[shown].argmax(axis=1)
        codes[shown, column] = confidence_codes(values[shown].max(axis=1))
    return labels, codes


def _select(folder: Path, identity: Mapping[str, Any], classes: Sequence[str], parts: int) -> None:
    """Write the confident labels, the table of frames, and last the manifest."""
    found = [Confidences(len(classes)) for _ in HEADS]
    for part in _parts(folder, parts):
        for column, confidences in enumerate(found):
            labelled = part.labels[:, column] != UNSURE
            confidences.add(part.labels[labelled, column], part.codes[labelled, column])
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
    """Write the confident labels of every part and count them in ``kept``; returns the table of frames."""
    table: list[tuple[int, int]] = []
    points = int(sum(part.lengths.sum() for part in _parts(folder, parts)))

    def write(file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (points, len(HEADS))}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]  # numpy leaves it untyped
        end = 0
        for part in _parts(folder, parts):
            labels = _confident_labels(part, thresholds)
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


def _confident_labels(part: _Part, thresholds: Sequence[np.ndarray]) -> UInt8[np.ndarray, "points 2"]:
    labels = part.labels.copy()
    for column, least in enumerate(thresholds):
        labelled = np.flatnonzero(labels[:, column] != UNSURE)
        unsure = ~is_confident(labels[labelled, column], part.codes[labelled, column], least)
        labels[labelled[unsure], column] = UNSURE
    return labels


def confidence_codes(probabilities: Float[np.ndarray, "points"]) -> UInt16[np.ndarray, "points"]:
    """Encode confidences from 0 to 1 as multiples of 1 / 65535."""
    return np.round(probabilities.astype(np.float64) * (CODES - 1)).astype(np.uint16)


class Confidences:
    """Histogram of the confidences of the points predicted as each class."""

    def __init__(self, classes: int) -> None:
        self.counts: Int64[np.ndarray, "classes codes"] = np.zeros((classes, CODES), np.int64)

    def add(self, labels: UInt8[np.ndarray, "points"], codes: UInt16[np.ndarray, "points"]) -> None:
        """Count the points predicted as ``labels`` with the confidences ``codes``."""
        bins = labels.astype(np.int64) * CODES + codes
        self.counts += np.bincount(bins, minlength=self.counts.size).reshape(self.counts.shape)

    def thresholds(self) -> Float64[np.ndarray, "classes"]:
        """Returns the lowest confidence that is kept for each class; of two medians, the lower one counts."""
        below = self.counts.cumsum(axis=1)
        middle = (below[:, -1:] + 1) // 2
        medians = (below >= middle).argmax(axis=1) / (CODES - 1)
        return np.minimum(medians, ENOUGH)


def is_confident(
    labels: UInt8[np.ndarray, "points"],
    codes: UInt16[np.ndarray, "points"],
    thresholds: Float64[np.ndarray, "classes"],
) -> Bool[np.ndarray, "points"]:
    """Returns whether each point is kept."""
    return codes / (CODES - 1) >= thresholds[labels]

"""Makes pseudo labels: predicts all frames in parts, then keeps the confident predictions of each class.

When a stopped run is resumed, parts that are already written are not predicted again. The labels appear atomically.

``train.pseudo_label_choice`` selects the labels to keep; its medians are taken over all frames.
"""

import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float64, Int64

from ...errors import DataError, MissingDataError
from ...files import write_atomic, write_json
from ...fingerprint import fingerprint_digest
from ...locks import exclusive_lock
from ..datasets.npy_files import load_archive
from ..evaluate.scores import FramePrediction
from ..train.pseudo_label_choice import CODES, HEADS, UNSURE, Candidates, LabelRule, thresholds
from ..train.pseudo_labels import FORMAT, FRAMES, LABELS, MANIFEST, PseudoLabels

__all__ = ["candidates", "make_pseudo_labels"]

PART = 64  #: frames per part
PREDICTED = "predicted"


def make_pseudo_labels(
    folder: Path,
    *,
    identity: Mapping[str, Any],
    frames: int,
    classes: Sequence[str],
    predict: Callable[[int], Iterable[FramePrediction]],
    rule: LabelRule,
) -> PseudoLabels:
    """Makes the pseudo labels of ``frames`` frames in ``folder``, or resumes; valid existing ones are returned.

    ``predict(first)`` returns the predictions of the frames from ``first`` on, in order; their labels are not used. If
    ``rule`` drops labels, ``identity`` must have it under "rule".

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
            _select(folder, identity, classes, _predicted(folder, frames, predict, rule))
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


def _predicted(folder: Path, frames: int, predict: Callable[[int], Iterable[FramePrediction]], rule: LabelRule) -> int:
    """Predicts the parts that are missing; returns the number of all parts."""
    (folder / PREDICTED).mkdir(exist_ok=True)
    for stale in folder.rglob("*.partial"):
        stale.unlink()
    parts = -(-frames // PART)
    done = _valid_parts(folder, parts)
    if done < parts:
        predictions = iter(predict(done * PART))
        for number, part in enumerate(iter(lambda: list(islice(predictions, PART)), []), start=done):
            _write_part(_part(folder, number), part, number * PART, rule)
    return parts


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Predictions of consecutive frames: points per frame, and the candidates of all points."""

    lengths: Int64[np.ndarray, "frames"]
    candidates: Candidates


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
    """Reads a part; the zip archive verifies the crc32 of every array."""
    lengths, labels, codes, eligible = load_archive(path, ("lengths", "labels", "codes", "eligible"))
    if eligible.shape != labels.shape:
        raise ValueError(f"{path} is of an earlier version, in which agents voted for the 3D head alone")
    return _Part(lengths=lengths, candidates=Candidates(labels=labels, codes=codes, eligible=eligible))


def _write_part(path: Path, predictions: Sequence[FramePrediction], first: int, rule: LabelRule) -> None:
    found = [
        candidates(frame, rule, what=f"of frame {number}") for number, frame in enumerate(predictions, start=first)
    ]
    arrays = {
        "lengths": np.array([len(each.labels) for each in found], np.int64),
        "labels": np.concatenate([each.labels for each in found]),
        "codes": np.concatenate([each.codes for each in found]),
        "eligible": np.concatenate([each.eligible for each in found]),
    }
    write_atomic(path, lambda file: np.savez(file, **arrays))


def candidates(frame: FramePrediction, rule: LabelRule, *, what: str) -> Candidates:
    """Returns the labels that a prediction proposes; ``what`` names it in errors.

    Raises:
        DataError: it is not finite.
    """
    for name, values in (("2d", frame.probabilities_2d), ("3d", frame.probabilities_3d)):
        if values is not None and not np.isfinite(values).all():
            raise DataError(
                f"The {name} prediction {what} is not finite; the network has diverged: lower train.lr and train again"
            )
    return Candidates.of(
        frame.probabilities_2d,
        frame.probabilities_3d,
        fused=frame.probabilities_fused,
        agents=frame.agents,
        rule=rule,
    )


def _select(folder: Path, identity: Mapping[str, Any], classes: Sequence[str], parts: int) -> None:
    """Writes the confident labels, the table of frames, and last the manifest."""
    counts = np.zeros((len(HEADS), len(classes), CODES), np.int64)
    for part in _parts(folder, parts):
        counts += part.candidates.histogram(len(classes))
    predicted, least = counts.sum(axis=2), thresholds(counts)
    kept = np.zeros_like(predicted)
    frames = _write_labels(folder, parts, least, kept)
    write_atomic(folder / FRAMES, lambda file: np.save(file, frames, allow_pickle=False))
    facts = {
        "format": FORMAT,
        "identity": dict(identity),
        "frames": len(frames),
        "heads": [head for head, found in zip(HEADS, predicted, strict=True) if found.any()],
        "classes": {
            head: {
                name: {
                    "predicted": int(predicted[row, number]),
                    "kept": int(kept[row, number]),
                    "threshold": float(least[row, number]),
                }
                for number, name in enumerate(classes)
            }
            for row, head in enumerate(HEADS)
        },
        "crc32": zlib.crc32(frames.tobytes()),
    }
    write_json(folder / MANIFEST, {**facts, "digest": fingerprint_digest(facts)})


def _write_labels(
    folder: Path, parts: int, least: Float64[np.ndarray, "heads classes"], kept: Int64[np.ndarray, "heads classes"]
) -> Int64[np.ndarray, "frames 2"]:
    """Writes the confident labels of every part and counts them in ``kept``; returns the table of frames."""
    table: list[tuple[int, int]] = []
    points = int(sum(part.lengths.sum() for part in _parts(folder, parts)))

    def write(file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (points, len(HEADS))}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]  # numpy leaves it untyped
        end = 0
        for part in _parts(folder, parts):
            labels = part.candidates.confident(least)
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

"""Predictions of frames as the official evaluators read them: files, metadata and the zip of a submission."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..datasets.index import FrameIndex
from ..datasets.labels import LabelMerge
from ..datasets.nuscenes import evaluation_set
from ..datasets.sweeps import usable_rows
from ..evaluate.official import (
    NO_CLASS,
    finish_export,
    official_ids,
    prediction_path,
    read_prediction,
    write_archive,
    write_prediction,
)
from .stamps import Stamps, file_stamp, frame_files
from .whole_sweeps import SweepPrediction

__all__ = ["ARCHIVE", "Submission"]

ARCHIVE = "submission.zip"  #: in the folder of the predictions


@dataclass(kw_only=True, eq=False)
class Submission:
    """A folder of predictions in the official format of the data set of ``index``."""

    out: Path
    index: FrameIndex
    merge: LabelMerge

    def __post_init__(self) -> None:
        self._written: set[int] = set()
        self._every_point = True
        self._stamps = Stamps(self.out)
        self._ids = official_ids(self.merge, self.index.dataset)

    @property
    def bytes_per_point(self) -> int:
        """Bytes that are written for each point of a sweep, the zip file included."""
        return 2 if self.index.dataset == "nuscenes" else 8

    def holds(self, row: int) -> bool:
        """Returns whether the frame in ``row`` has a prediction made from its current sweep and images.

        Raises:
            DataError: the token of the keyframe is not in the tables.
        """
        return self._stamps.is_up_to_date([self.out / prediction_path(self.index, row)], frame_files(self.index, row))

    def write(self, row: int, prediction: SweepPrediction) -> None:
        """Writes the ``decisive`` class of each point of the frame in ``row``.

        The official formats ask for a class of every point: one without usable coordinates gets the most frequent one.

        Raises:
            DataError: the token of the keyframe is not in the tables.
        """
        classes = prediction.classes(prediction.decisive)
        if (found := classes[classes != NO_CLASS]).size:
            classes[~usable_rows(prediction.points)] = np.bincount(found).argmax()
        self._written.add(row)
        self._every_point = self._every_point and not (classes == NO_CLASS).any()
        stamp = file_stamp(frame_files(self.index, row))
        write_prediction(self.out, self.index, row, classes, self._ids)
        self._stamps.add(self.out / prediction_path(self.index, row), stamp)

    def finish(self, rows: Sequence[int], *, images: bool) -> list[str]:
        """Writes the metadata; returns the faults that an official evaluator would reject or count as errors.

        ``rows`` are the predicted frames, in this call or an earlier one; ``images`` were used or not.

        Raises:
            DataError: the token of a keyframe is not in the tables.
        """
        kept = [row for row in rows if row not in self._written and self.holds(row)]
        every_point = self._every_point and all(read_prediction(self.out, self.index, row).all() for row in kept)
        return finish_export(self.out, self.index, self.merge, every_point=every_point, images=images)

    def pack(self, rows: Sequence[int]) -> Path | None:
        """Writes the zip file of ``rows``; None if a set of nuScenes has no ``submission.json``, see ``finish``.

        Raises:
            DataError: the token of a keyframe is not in the tables.
        """
        path = self.out / ARCHIVE
        if self.index.dataset == "nuscenes":
            sets = {evaluation_set(self.index, row) for row in rows}
            if not all((self.out / name / "submission.json").is_file() for name in sets):
                path.unlink(missing_ok=True)
                return None
        write_archive(path, self.out, self.index, rows)
        return path

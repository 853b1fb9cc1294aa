"""Reads pseudo labels: confident predictions of a trained network on unlabelled frames, to train another one on.

Their folder has ``labels.npy`` [points, 2] (label of the 2D and of the 3D head; 255 where the head was not confident),
``frames.npy`` [frames, 2] (end of each frame's points, and their crc32) and the manifest ``pseudo_labels.json``, which
is written last. Nothing is pickled, and the labels are memory-mapped, so that many frames need little memory.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from ...errors import DataError, MissingDataError, RunError
from ...files import read_json
from ...fingerprint import differences, fingerprint_digest
from ..datasets.labels import IGNORE
from ..datasets.npy_files import load_array
from .pseudo_label_choice import UNSURE, LabelRule

__all__ = ["PseudoLabels"]

FORMAT = 1
MANIFEST, LABELS, FRAMES = "pseudo_labels.json", "labels.npy", "frames.npy"


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Finished pseudo labels in ``folder``; safe to read from several threads.

    ``identity`` is everything they depend on: the run, checkpoint and features that predicted them, and the frames.
    """

    folder: Path
    identity: Mapping[str, Any]
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "PseudoLabels":
        """Opens the pseudo labels in ``folder``.

        Raises:
            MissingDataError: there are none, or they are not finished.
            DataError: they have another format, or the manifest or the table of frames is damaged.
        """
        try:
            facts = read_json(folder / MANIFEST)
        except FileNotFoundError as error:
            raise MissingDataError(
                f"There are no finished pseudo labels in {folder}; make them, or resume, with: xd3d pseudo-label"
            ) from error
        except ValueError as error:
            raise DataError(f"{folder / MANIFEST} is damaged ({error}); {_REMEDY}") from error
        digest = facts.pop("digest", None) if isinstance(facts, dict) else None
        if digest is None or digest != fingerprint_digest(facts):
            raise DataError(f"{folder / MANIFEST} is damaged: it does not match its digest; {_REMEDY}")
        if facts["format"] != FORMAT:
            raise DataError(f"{folder} has format {facts['format']}, this version reads {FORMAT}; {_REMEDY}")
        found = cls(folder=folder, identity=facts["identity"], facts=facts)
        if zlib.crc32(found._frames.tobytes()) != facts["crc32"] or len(found._labels) != found.points:
            raise DataError(f"The pseudo labels in {folder} do not match each other; {_REMEDY}")
        return found

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.facts["frames"])

    @property
    def points(self) -> int:
        """Number of points of all frames."""
        return int(self._frames[-1, 0]) if self.frames else 0

    @property
    def heads(self) -> Sequence[str]:
        """The heads that predicted: "2d" and "3d", or "3d" alone."""
        return tuple(self.facts["heads"])

    def points_of(self, frame: int) -> int:
        """Returns the number of points of ``frame``."""
        return int(self._frames[frame, 0] - (self._frames[frame - 1, 0] if frame else 0))

    def provenance(self) -> dict[str, Any]:
        """Returns what they depend on, and a checksum of the labels, which identifies them in the record of a run."""
        return {**self.identity, "crc32": self.facts["crc32"]}

    def read(self, frame: int, points: int) -> Int64[np.ndarray, "points heads"]:
        """Reads the labels of ``frame``, which has ``points`` points; -100 where a head was not confident.

        Raises:
            DataError: they are damaged, or the frame has another number of points.
        """
        last, expected = (int(value) for value in self._frames[frame])
        stored = np.array(self._labels[last - self.points_of(frame) : last])
        if zlib.crc32(stored.tobytes()) != expected:
            raise DataError(f"The pseudo labels of frame {frame} in {self.folder / LABELS} are damaged; {_REMEDY}")
        if len(stored) != points:
            raise DataError(
                f"The pseudo labels of frame {frame} in {self.folder} are for {len(stored)} points, and the frame has"
                f" {points}: its files have changed; delete that folder and run 'xd3d pseudo-label' again"
            )
        return np.where(stored == UNSURE, IGNORE, stored.astype(np.int64))

    def verify(self) -> None:
        """Reads everything once and checks it.

        Raises:
            DataError: a frame is damaged.
        """
        ends = self._frames[:, 0]
        for frame, points in enumerate(np.diff(ends, prepend=0)):
            self.read(frame, int(points))

    def require(self, target: Mapping[str, Any], *, heads: Sequence[str], rule: LabelRule) -> None:
        """Checks that they belong to the domain that ``target`` describes, come from all ``heads`` and follow ``rule``.

        Raises:
            RunError: they do not; the message names each field that differs.
        """
        found = {"target": self.identity["target"], "rule": self.identity.get("rule", [])}
        lines = differences({"target": target, "rule": rule.names}, found)
        if missing := [head for head in heads if head not in self.heads]:
            lines.append(f"heads: expected {', '.join(heads)}, found no {', '.join(missing)}")
        if lines:
            listed = "\n".join(f"  {line[:300]}" for line in lines)
            raise RunError(
                f"The pseudo labels in {self.folder} are of other frames, heads or rules:\n{listed}\n"
                f"Make pseudo labels for this training with '{' --'.join(['xd3d pseudo-label', *rule.names])}', or name"
                " others with data.pseudo_labels"
            )

    @cached_property
    def _frames(self) -> Int64[np.ndarray, "frames 2"]:
        return self._load(FRAMES, "<i8", mapped=False)

    @cached_property
    def _labels(self) -> UInt8[np.ndarray, "points 2"]:
        return self._load(LABELS, "|u1", mapped=True)

    def _load(self, name: str, dtype: str, *, mapped: bool) -> np.ndarray:
        try:
            found = np.asarray(load_array(self.folder / name, mapped=mapped))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder / name} cannot be read ({error}); {_REMEDY}") from error
        if found.dtype.str != dtype or found.ndim != 2:
            raise DataError(f"{self.folder / name} is an array {list(found.shape)} of {found.dtype}; {_REMEDY}")
        return found


_REMEDY = "make them again with: xd3d pseudo-label"

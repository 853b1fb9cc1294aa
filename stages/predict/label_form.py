"""Encodes predicted classes: as numbers in label files, and as coloured point clouds."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64, UInt8, UInt32

from ...files import write_bytes

__all__ = ["CLOUD_SUFFIX", "LabelForm"]

CLOUD_SUFFIX = ".labels.ply"


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelForm:
    """The label number of each class of a network; the last one is for points without a class (class -1).

    ``palette`` has their colours, red, green and blue from 0 to 255, if coloured clouds are written.
    """

    numbers: Int64[np.ndarray, "classes_and_none"]
    palette: UInt8[np.ndarray, "classes_and_none 3"] | None = None

    @classmethod
    def of(cls, classes: Sequence[str]) -> "LabelForm":
        """Creates the form in which class ``c`` has the number ``c + 1``, and no class 0."""
        return cls(numbers=np.append(np.arange(len(classes)) + 1, 0))

    def labels(self, classes: Int64[np.ndarray, "points"]) -> UInt32[np.ndarray, "points"]:
        """Returns the numbers of ``classes``, as in a label file."""
        return self.numbers[classes].astype("<u4")

    def classes(self, labels: UInt32[np.ndarray, "points"]) -> Int64[np.ndarray, "points"]:
        """Returns the classes of the numbers in a label file."""
        order = np.argsort(self.numbers)
        found = order[np.searchsorted(self.numbers, labels, sorter=order)]
        return np.where(found == len(self.numbers) - 1, -1, found)

    def files(self, labels: Path) -> list[Path]:
        """Returns the label file ``labels``, and the coloured cloud beside it if there is a palette."""
        return [labels] if self.palette is None else [labels, labels.with_suffix(CLOUD_SUFFIX)]

    def write(self, labels: Path, points: Float[np.ndarray, "points 3"], classes: Int64[np.ndarray, "points"]) -> None:
        """Writes ``files``; a coloured cloud of an earlier call is removed first."""
        with suppress(OSError):
            labels.with_suffix(CLOUD_SUFFIX).unlink()
        write_bytes(labels, self.labels(classes).tobytes())
        if self.palette is not None:
            write_bytes(labels.with_suffix(CLOUD_SUFFIX), self.cloud(points, classes))

    def cloud(self, points: Float[np.ndarray, "points 3"], classes: Int64[np.ndarray, "points"]) -> bytes:
        """Returns a binary PLY file of the points, in their own precision, with colours and labels.

        Raises:
            ValueError: there is no palette.
        """
        if self.palette is None:
            raise ValueError("A coloured cloud needs a palette")
        kind, name = ("<f8", "double") if points.dtype == np.float64 else ("<f4", "float")
        axes, colours = ("x", "y", "z"), ("red", "green", "blue")
        table = np.zeros(
            len(points),
            [*((axis, kind) for axis in axes), *((colour, "u1") for colour in colours), ("label", "<u4")],
        )
        for axis, values in zip(axes, points.T, strict=True):
            table[axis] = values
        for colour, values in zip(colours, self.palette[classes].T, strict=True):
            table[colour] = values
        table["label"] = self.labels(classes)
        properties = [(name, axis) for axis in axes] + [("uchar", colour) for colour in colours] + [("uint", "label")]
        lines = [
            *("ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"),
            *(f"property {kind} {each}" for kind, each in properties),
            "end_header\n",
        ]
        return "\n".join(lines).encode() + table.tobytes()

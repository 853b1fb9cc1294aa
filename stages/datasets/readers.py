"""The data sets that can be read: each is a module with the functions of ``Reader``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Integer

from . import a2d2, folder, nuscenes, semantickitti, semanticstf, synlidar, virtualkitti
from .checks import FileFault
from .index import FrameIndex
from .sweeps import Sweep

__all__ = ["READERS", "Reader"]


@runtime_checkable
class Reader(Protocol):
    """What a data set brings, as functions of its module."""

    def build_index(
        self, root: Path, *, version: str | None = None, cameras: str | Sequence[str] | None = None
    ) -> FrameIndex:
        """Make the index of a data root from tables and calibration; no sweep is read.

        ``cameras``: names, in one string with commas or as a sequence; "all", or "none" for LiDAR only. None takes
        those of the published settings.
        """
        ...

    def check_files(self, index: FrameIndex) -> list[FileFault]:
        """Look at every file that the index names."""
        ...

    def read_sweep(self, index: FrameIndex, row: int) -> Sweep:
        """The points of the frame in ``row``."""
        ...

    def read_labels(self, index: FrameIndex, row: int, sweep: Sweep) -> Integer[np.ndarray, "labels"]:
        """The raw labels of the frame's points; only asked for where the index names a label file."""
        ...

    def pixels(self, index: FrameIndex, image: int, sweep: Sweep) -> Float64[np.ndarray, "points 2"]:
        """Where each point of the frame lies in the image of row ``image``: x, y in pixels, or NaN where it is not."""
        ...


#: Data set name -> the module that reads it.
READERS: Mapping[str, Reader] = {
    "nuscenes": nuscenes,
    "semantickitti": semantickitti,
    "semanticstf": semanticstf,
    "synlidar": synlidar,
    "a2d2": a2d2,
    "virtualkitti": virtualkitti,
    "folder": folder,
}

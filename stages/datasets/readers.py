"""The registry of data sets: each is a module with the functions of ``Reader``."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float64, Integer

from . import memory
from .catalogue import DatasetName
from .checks import Faults
from .index import FrameIndex
from .sweeps import Sweep

__all__ = ["READERS", "FrameReader", "Reader", "reader_of"]


@runtime_checkable
class FrameReader(Protocol):
    """The functions that read a frame and place it in its images."""

    def read_sweep(self, index: FrameIndex, row: int) -> Sweep:
        """Returns the points of the frame in ``row``."""
        ...

    def pixels(self, index: FrameIndex, image: int, sweep: Sweep) -> Float64[np.ndarray, "points 2"]:
        """Returns the pixels (x, y) of each point in the image of row ``image``; NaN behind the camera."""
        ...


@runtime_checkable
class Reader(FrameReader, Protocol):
    """The functions that the module of a data set provides."""

    def build_index(
        self, root: Path, *, version: str | None = None, cameras: str | Sequence[str] | None = None
    ) -> FrameIndex:
        """Builds the index of a data root from tables and calibration; no sweep is read.

        ``cameras``: names, in one string with commas or as a sequence; "all", or "none" for LiDAR only. None selects
        those of the published settings. Some take further options: ``allow_missing``, to leave parts of the data set
        out that are incomplete as a whole, and ``follow_links``, where tables name files.
        """
        ...

    def check_files(self, index: FrameIndex) -> Faults:
        """Checks every file of the index."""
        ...

    def read_labels(self, index: FrameIndex, row: int, sweep: Sweep) -> Integer[np.ndarray, "labels"]:
        """Returns the raw labels of the frame's points; only called if the index has a label file."""
        ...


#: Data set name -> the module that reads it, which has the same name.
READERS: Mapping[str, Reader] = {
    name: cast("Reader", import_module(f".{name}", __package__)) for name in get_args(DatasetName)
}


def reader_of(index: FrameIndex) -> FrameReader:
    """Returns what reads the frames of ``index``: the module of its data set, or that of a frame in memory."""
    return memory if isinstance(index, memory.MemoryIndex) else READERS[index.dataset]

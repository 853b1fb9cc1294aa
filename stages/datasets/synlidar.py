"""SynLiDAR: 13 sequences of synthetic sweeps in SemanticKITTI's layout, with 32 classes of its own and no images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from .cameras import refuse_cameras
from .checks import FileFault
from .index import FrameIndex, ImageTable
from .projection import image_pixels as pixels
from .roots import check_level, refuse_version
from .sweeps import Sweep
from .velodyne import (
    LABELS,
    VELODYNE,
    Recording,
    check_velodyne,
    frame_table,
    read_semantic,
    read_velodyne,
    require_folders,
    stems,
)

__all__ = ["build_index", "check_files", "pixels", "read_labels", "read_sweep"]

_COLUMNS = 4  # x, y, z, intensity
_DOWNLOAD = "https://github.com/xiaoaoran/SynLiDAR"


def build_index(root: Path, *, version: str | None = None, cameras: str | Sequence[str] | None = None) -> FrameIndex:
    """Index every frame of the sequences that are there, the full set or the subset alike; all are train frames.

    Raises:
        MissingDataError: no such root, or a sequence lacks its sweeps or labels.
        ConfigError: a camera or a version is asked for.
    """
    refuse_version("SynLiDAR", version)
    refuse_cameras("SynLiDAR", cameras)
    root = check_level(
        root,
        dataset="SynLiDAR",
        holds="00 (or sequences/00) with velodyne and labels in it",
        is_root=lambda folder: bool(_sequences(folder)),
        download=_DOWNLOAD,
    )
    recordings = [_recording(folder) for folder in _sequences(root)]
    return FrameIndex(
        dataset="synlidar",
        version="",
        root=root,
        cameras=(),
        frames=frame_table(root, recordings),
        images=ImageTable.of([]),
    )


def check_files(index: FrameIndex) -> list[FileFault]:
    """Look at every file: sweeps of 16 bytes a point, a label of 4 bytes a point."""
    return check_velodyne(index, _COLUMNS)


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """The points of a frame: x forward, y left, z up."""
    return read_velodyne(index, row, _COLUMNS)


def read_labels(index: FrameIndex, row: int, _: Sweep) -> UInt[np.ndarray, "labels"]:
    """The raw ids of a frame, 0 to 32."""
    return read_semantic(index, row)


def _sequences(root: Path) -> list[Path]:
    """Folders of the sequences of a root, none where it is no root."""
    for parent in (root / "sequences", root):
        found = sorted(folder for folder in parent.glob("[0-9][0-9]") if (folder / VELODYNE).is_dir())
        if found:
            return found
    return []


def _recording(folder: Path) -> Recording:
    remedy = f"unpack its archive again, all parts of it together ({_DOWNLOAD})"
    require_folders(folder, [(kind, remedy) for kind in (VELODYNE, LABELS)])
    names = stems(folder / VELODYNE, ".bin") | stems(folder / LABELS, ".label")
    return Recording(folder=folder, scene=folder.name, split="train", stems=tuple(sorted(names)), labelled=True)

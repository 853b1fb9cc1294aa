"""SynLiDAR: 13 sequences of synthetic sweeps in SemanticKITTI's layout, with 32 classes of its own and no images."""

from collections.abc import Sequence
from pathlib import Path

from .index import FrameIndex
from .listing import stems
from .projection import image_pixels as pixels
from .reader_arguments import refuse_cameras, refuse_version, resolve_root
from .velodyne_layout import (
    LABELS,
    VELODYNE,
    Recording,
    check_files,
    lidar_index,
    read_labels,
    read_recordings,
    read_sweep,
    require_folders,
)

__all__ = ["build_index", "check_files", "pixels", "read_labels", "read_sweep"]

_DOWNLOAD = "https://github.com/xiaoaoran/SynLiDAR"


def build_index(
    root: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    allow_missing: bool = False,
) -> FrameIndex:
    """Indexes every frame of the existing sequences, of the full set or the subset; all are train frames.

    ``allow_missing`` leaves sequences out that lack a folder.

    Raises:
        MissingDataError: the root is missing, or a sequence lacks its sweeps or labels.
        ConfigError: a camera or a version is given.
    """
    refuse_version("SynLiDAR", version)
    refuse_cameras("SynLiDAR", cameras)
    root = resolve_root(
        root,
        dataset="SynLiDAR",
        holds="00 (or sequences/00) with velodyne and labels in it",
        is_root=lambda folder: bool(_sequences(folder)),
        download=_DOWNLOAD,
    )
    found = read_recordings(_sequences(root), _recording, allow_missing=allow_missing)
    return lidar_index("synlidar", root, *found)


def _sequences(root: Path) -> list[Path]:
    """Folders of the sequences; empty if ``root`` is not a root."""
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

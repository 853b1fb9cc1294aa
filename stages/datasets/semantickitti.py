"""SemanticKITTI: sweeps and labels of KITTI odometry, its calibration, and the images of its colour cameras.

The root is the folder that holds ``dataset/sequences`` (or ``sequences``), as the downloads unpack.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from .calibration_checks import check_calibration
from .checks import common_size
from .index import FrameIndex, ImageRow, ImageTable
from .kitti_calibration import KITTI_REMEDY, Calibration, read_calibration
from .listing import IMAGE_SUFFIXES, find_stems, names_apart, stems
from .projection import image_pixels
from .reader_arguments import choose_cameras, refuse_version, resolve_root
from .sweeps import Sweep
from .velodyne_layout import (
    LABELS,
    VELODYNE,
    Recording,
    check_files,
    frame_table,
    read_labels,
    read_recordings,
    read_sweep,
    require_folders,
)

__all__ = ["CAMERAS", "build_index", "check_files", "pixels", "read_labels", "read_sweep"]

log = logging.getLogger(__name__)

#: The left and the right colour camera.
CAMERAS = ("image_2", "image_3")

_PUBLISHED = ("image_2",)

#: The official split of the benchmark; sequences after 10 come without labels.
_VALIDATION, _LABELLED, _LAST = "08", 11, 21

_KITTI = "https://www.cvlibs.net/datasets/kitti/eval_odometry.php"
_COLOUR = f"unpack data_odometry_color.zip ({_KITTI}), or index"
_DOWNLOADS = {
    VELODYNE: f"unpack data_odometry_velodyne.zip ({_KITTI})",
    LABELS: "unpack data_odometry_labels.zip (https://semantic-kitti.org/dataset.html)",
    "image_2": f"{_COLOUR} without images: --cameras none",
    "image_3": f"{_COLOUR} the left camera alone: --cameras image_2",
}


def build_index(
    root: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    allow_missing: bool = False,
) -> FrameIndex:
    """Indexes every frame of the existing sequences; reads calibrations and the size of one image per sequence.

    ``cameras``: ``image_2`` (None, the published one), ``image_3``, both ("all"), or "none". ``allow_missing`` leaves
    sequences out that lack a folder or their calibration.

    Raises:
        MissingDataError: the root is missing, or a sequence lacks its sweeps, labels, images or calibration.
        DataError: a calibration is damaged.
        ConfigError: unknown camera, or a version is given.
    """
    refuse_version("SemanticKITTI", version)
    root = resolve_root(
        root,
        dataset="SemanticKITTI",
        holds="dataset/sequences/00 or sequences/00 with velodyne and labels in it",
        is_root=lambda folder: bool(_sequences(folder)),
        download="https://semantic-kitti.org/dataset.html",
    )
    chosen = choose_cameras(_PUBLISHED if cameras is None else cameras, CAMERAS)
    recordings, left_out = read_recordings(
        _sequences(root), partial(_recording, cameras=chosen), allow_missing=allow_missing
    )
    others = [part.scene for part in recordings if int(part.scene) > _LAST and (part.folder / LABELS).is_dir()]
    if others:
        log.warning(
            "Labels of the sequences %s are not read, which are none of the benchmark's 00 to 21; call them 00 to 10,"
            " or describe them as a folder of your own (docs/data/folder.md)",
            ", ".join(others),
        )
    images: list[ImageRow] = []
    frame = 0
    for recording in recordings:
        images += _image_rows(root, recording, chosen, frame)
        frame += len(recording.stems)
    return FrameIndex(
        dataset="semantickitti",
        version="",
        root=root,
        cameras=chosen,
        frames=frame_table(root, recordings),
        images=ImageTable.of(images),
        left_out=left_out,
    )


def pixels(index: FrameIndex, image: int, sweep: Sweep) -> Float64[np.ndarray, "points 2"]:
    """Projects points with the sequence's calibration; NaN behind the camera or the LiDAR (x <= 0), as published."""
    found = image_pixels(index, image, sweep)
    found[sweep.points[:, 0] <= 0] = np.nan
    return found


def _sequences(root: Path) -> list[Path]:
    """Folders of the sequences; empty if ``root`` is not a root."""
    for parent in (root / "dataset" / "sequences", root / "sequences"):
        found = sorted(
            folder for folder in parent.glob("[0-9][0-9]") if any((folder / kind).is_dir() for kind in _DOWNLOADS)
        )
        if found:
            return found
    return []


def _recording(folder: Path, cameras: Sequence[str]) -> Recording:
    labelled = int(folder.name) < _LABELLED
    kinds = (VELODYNE, *((LABELS,) if labelled else ()), *cameras)
    require_folders(folder, [(kind, _DOWNLOADS[kind]) for kind in kinds])
    named = {VELODYNE: stems(folder / VELODYNE, ".bin")}
    named |= {LABELS: stems(folder / LABELS, ".label")} if labelled else {}
    named |= {camera: set(find_stems(folder / camera, IMAGE_SUFFIXES)) for camera in cameras}
    if apart := names_apart(named):
        raise DataError(f"{folder}: {apart}")
    names = set[str]().union(*named.values())
    _views(folder, cameras)
    split = "test" if not labelled else "val" if folder.name == _VALIDATION else "train"
    return Recording(folder=folder, scene=folder.name, split=split, stems=tuple(sorted(names)), labelled=labelled)


def _views(folder: Path, cameras: Sequence[str]) -> list[tuple[str, Calibration, tuple[int, int], dict[str, Path]]]:
    """Each camera of a sequence with its calibration, the size of its images, and their files by name."""
    if not cameras:
        return []
    calibration = read_calibration(folder / "calib.txt")
    paths = {camera: find_stems(folder / camera, IMAGE_SUFFIXES) for camera in cameras}
    views = [
        (camera, calibration[camera], common_size(sorted(paths[camera].values()), folder / camera), paths[camera])
        for camera in cameras
    ]
    for camera, found, size, _ in views:
        check_calibration(f"{folder}/{camera}", *found, size, KITTI_REMEDY)
    return views


def _image_rows(root: Path, recording: Recording, cameras: Sequence[str], first: int) -> list[ImageRow]:
    views = _views(recording.folder, cameras)
    folder = recording.folder.relative_to(root).as_posix()
    return [
        ImageRow(
            frame=first + index,
            key=f"{recording.scene}/{camera}/{stem}",
            camera=camera,
            path=f"{folder}/{camera}/{paths[stem].name if stem in paths else f'{stem}.png'}",
            size=size,
            intrinsics=lens.intrinsics,
            camera_from_lidar=lens.camera_from_lidar,
        )
        for index, stem in enumerate(recording.stems)
        for camera, lens, size, paths in views
    ]

"""Shared parts of data sets in SemanticKITTI's layout: folders with ``velodyne/*.bin`` and ``labels/*.label``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from ...errors import MissingDataError
from .catalogue import RAW_NAMES
from .checks import Faults
from .index import FrameIndex, FrameTable, ImageTable
from .label_files import check_raw_files, read_raw_labels
from .listing import is_hidden, stems
from .reader_arguments import read_parts
from .sweeps import Sweep, load_sweep

__all__ = [
    "LABELS",
    "VELODYNE",
    "Recording",
    "check_files",
    "read_recordings",
    "frame_table",
    "lidar_index",
    "read_labels",
    "read_sweep",
    "require_folders",
]

VELODYNE, LABELS = "velodyne", "labels"

_LABEL_TYPE = "<u4"

#: float32 per point: x, y, z and intensity; in some data sets the ring too.
_COLUMNS, _WITH_RING = 4, {"semanticstf": 5}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A folder of frames: its scene name, official split, frame names, and a description per frame (its weather)."""

    folder: Path
    scene: str
    split: str
    stems: tuple[str, ...]
    labelled: bool
    words: tuple[str, ...] = ()


def frame_table(root: Path, sequences: Iterable[Recording]) -> FrameTable:
    """Returns the frames of all sequences in order; their keys are scene and name."""
    rows = [(part, stem, index) for part in sequences for index, stem in enumerate(part.stems)]

    def path(part: Recording, kind: str, name: str) -> str:
        return (part.folder.relative_to(root) / kind / name).as_posix()

    return FrameTable(
        key=np.array([f"{part.scene}/{stem}" for part, stem, _ in rows], str),
        scene=np.array([part.scene for part, _, _ in rows], str),
        location=np.array(["" for _ in rows], str),
        description=np.array([part.words[index] if part.words else "" for part, _, index in rows], str),
        split=np.array([part.split for part, _, _ in rows], str),
        sweep=np.array([path(part, VELODYNE, f"{stem}.bin") for part, stem, _ in rows], str),
        labels=np.array([path(part, LABELS, f"{stem}.label") if part.labelled else "" for part, stem, _ in rows], str),
    )


def read_recordings(
    folders: Iterable[Path], read: Callable[[Path], Recording], *, allow_missing: bool
) -> tuple[list[Recording], dict[str, str]]:
    """Returns the recordings in ``folders``, and with ``allow_missing`` the frames of those that are incomplete.

    The second value has the reason by key of the frame.

    Raises:
        MissingDataError, DataError: a recording is incomplete, and that is not allowed.
    """

    def keys(folder: Path) -> list[str]:
        return [f"{folder.name}/{stem}" for stem in sorted(stems(folder / VELODYNE, ".bin"))] or [folder.name]

    return read_parts(folders, read, keys, allow_missing=allow_missing)


def require_folders(part: Path, kinds: Sequence[tuple[str, str]]) -> None:
    """Checks that the folders of a sequence exist; ``kinds`` pairs each with its download for the message.

    Raises:
        MissingDataError: a folder is missing or empty.
    """
    for kind, download in kinds:
        folder = part / kind
        if not folder.is_dir() or all(map(is_hidden, folder.iterdir())):
            problem = "is empty" if folder.is_dir() else "is missing"
            raise MissingDataError(f"The folder {folder} {problem}: {download}")


def lidar_index(
    dataset: str, root: Path, recordings: Sequence[Recording], left_out: Mapping[str, str] | None = None
) -> FrameIndex:
    """Returns the index of a data set without images; ``left_out`` are incomplete frames by key."""
    return FrameIndex(
        dataset=dataset,
        version="",
        root=root,
        cameras=(),
        frames=frame_table(root, recordings),
        images=ImageTable.of([]),
        left_out=left_out or {},
    )


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """Returns the points of a frame: x forward, y left, z up."""
    columns = _WITH_RING.get(index.dataset, _COLUMNS)
    return load_sweep(index.root / str(index.frames.sweep[row]), columns=columns, dtype="float32")


def read_labels(index: FrameIndex, row: int, _: Sweep) -> UInt[np.ndarray, "labels"]:
    """Returns the semantic ids of a frame."""
    return read_raw_labels(index.root / str(index.frames.labels[row]), _LABEL_TYPE)


def check_files(index: FrameIndex) -> Faults:
    """Checks every file: complete sweeps, a label of 4 bytes with a known id per point, images of the indexed size."""
    return check_raw_files(
        index, columns=_WITH_RING.get(index.dataset, _COLUMNS), dtype=_LABEL_TYPE, ids=RAW_NAMES[index.dataset]
    )

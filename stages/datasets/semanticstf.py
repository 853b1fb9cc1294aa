"""SemanticSTF: sweeps in fog, rain and snow with SemanticKITTI's 19 classes; the release has no images.

The root holds ``train``, ``val`` and ``test``, each with ``velodyne`` and ``labels``; ``val/val.txt`` lists the weather
of each frame.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ...errors import DataError
from .catalogue import DOMAINS
from .index import FrameIndex
from .listing import stems
from .projection import image_pixels as pixels
from .reader_arguments import name_some, refuse_cameras, refuse_version, resolve_root
from .text_files import read_text
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

SPLITS = ("train", "val", "test")
WEATHERS = DOMAINS["semanticstf"][1:]

_DOWNLOAD = "https://github.com/xiaoaoran/SemanticSTF"


def build_index(
    root: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    allow_missing: bool = False,
) -> FrameIndex:
    """Indexes every frame of the existing splits; ``frames.description`` is the weather, "" if unknown.

    ``allow_missing`` leaves splits out that lack a folder or their list.

    Raises:
        MissingDataError: the root is missing, a split lacks its sweeps or labels, or ``val`` its list of weathers.
        DataError: a list has an unknown weather, or lacks frames.
        ConfigError: a camera or a version is given.
    """
    refuse_version("SemanticSTF", version)
    refuse_cameras("SemanticSTF", cameras)
    root = resolve_root(
        root,
        dataset="SemanticSTF",
        holds="train, val and test, each with velodyne and labels in it",
        is_root=lambda folder: any((folder / split / VELODYNE).is_dir() for split in SPLITS),
        download=_DOWNLOAD,
    )
    folders = [root / split for split in SPLITS if (root / split).is_dir()]
    return lidar_index("semanticstf", root, *read_recordings(folders, _recording, allow_missing=allow_missing))


def _recording(folder: Path) -> Recording:
    split = folder.name
    labelled = split != "test" or (folder / LABELS).is_dir()
    remedy = f"unpack the download again ({_DOWNLOAD})"
    require_folders(folder, [(kind, remedy) for kind in (VELODYNE, *((LABELS,) if labelled else ()))])
    names = sorted(stems(folder / VELODYNE, ".bin") | stems(folder / LABELS, ".label"))
    path = folder / f"{split}.txt"
    weather = _read_weather(path) if split == "val" or path.exists() else dict.fromkeys(names, "")
    missing = [name for name in names if name not in weather]
    if missing:
        raise DataError(
            f"{path} names no weather for {len(missing)} of {len(names)} frames ({name_some(missing)}); {remedy}"
        )
    words = tuple(weather[name] for name in names)
    return Recording(folder=folder, scene=split, split=split, stems=tuple(names), labelled=labelled, words=words)


def _read_weather(path: Path) -> Mapping[str, str]:
    """Returns the weather by frame, from lines such as ``2018-02-03_20-51-45_00400,snow``."""
    remedy = f"get this list of the weather of each frame from {_DOWNLOAD}"
    weather: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "list", remedy).splitlines(), 1):
        name, comma, word = line.strip().partition(",")
        if not line.strip():
            continue
        if not comma or word.strip() not in WEATHERS:
            raise DataError(
                f"Line {number} of {path} is '{line.strip()[:60]}'; it must be a frame, a comma and one of"
                f" {', '.join(WEATHERS)}; {remedy}"
            )
        weather[PurePosixPath(name.strip()).name.removesuffix(".bin")] = word.strip()
    return weather

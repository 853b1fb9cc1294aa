"""A user's folder as a data set: its ``dataset.yaml`` describes sweeps, labels, images and calibration."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from ...errors import DataError, MissingDataError
from .arrays import load_array
from .calibration_checks import check_calibration
from .checks import Check, FileFault, binary_fault, common_size, image_fault, run_checks
from .folder_calibration import FolderCamera, read_folder_calibration
from .folder_description import NAME, FolderDescription, Key, Names, find_files, read_description
from .index import FrameIndex, FrameTable, ImageRow, ImageTable
from .label_files import label_fault, read_raw_labels
from .lens import Lens
from .projection import image_pixels as pixels
from .reader_arguments import check_level, choose_cameras, refuse_version
from .sweeps import COLUMNS, Sweep, read_points, sweep_suffix
from .texts import read_text

__all__ = ["build_index", "check_files", "pixels", "read_labels", "read_sweep"]

#: Suffix of a label file -> dtype; the lower 16 bits of a ``.label`` number are the label, as in SemanticKITTI.
_LABELS = {".label": "<u4", ".bin": "u1"}


def build_index(root: Path, *, version: str | None = None, cameras: str | Sequence[str] | None = None) -> FrameIndex:
    """Indexes every frame that has a sweep, a label file or an image.

    Raises:
        MissingDataError: ``dataset.yaml``, all sweeps, or a calibration is missing.
        DataError: the description or a calibration is invalid, or a name in it matches no frame.
        ConfigError: unknown camera, or a version is given.
    """
    refuse_version("A folder", version)
    root = check_level(
        root,
        dataset="folder",
        holds=f"{NAME}, the description of its files",
        is_root=lambda folder: (folder / NAME).is_file(),
        download="docs/data/folder.md, which explains how to write it",
    )
    about = read_description(root)
    chosen = choose_cameras("all" if cameras is None else cameras, tuple(about.images)) if about.images else ()
    patterns = {"sweeps": about.sweeps, **({"labels": about.labels} if about.labels else {})}
    patterns |= {f"images.{camera}": about.images[camera] for camera in chosen}
    files = {kind: find_files(root, pattern) for kind, pattern in patterns.items()}
    if not files["sweeps"]:
        raise MissingDataError(
            f"No file of {root} matches the pattern '{about.sweeps}' of the sweeps in {NAME}; correct it"
        )
    keys = sorted(set[Key]().union(*files.values()))
    images, lenses = _images(root, about, keys, files, chosen)
    return FrameIndex(
        dataset="folder",
        version="",
        root=root,
        cameras=chosen,
        frames=_frames(root, about, keys, files),
        images=ImageTable.of(images),
        lenses=lenses,
        described={"columns": about.columns, "classes": {name: list(ids) for name, ids in about.classes.items()}},
    )


def check_files(index: FrameIndex) -> list[FileFault]:
    """Checks every file: sweeps are complete, one label per point, images complete and of one size per scene."""
    return run_checks(_checks(index), 2 * len(index.frames.key) + len(index.images.key))


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """Returns the points of a frame."""
    path = index.root / str(index.frames.sweep[row])
    return Sweep(points=read_points(path, columns=index.described["columns"]))


def read_labels(index: FrameIndex, row: int, _: Sweep) -> Integer[np.ndarray, "labels"]:
    """Returns the raw ids of a frame from a ``.label``, ``.bin`` (one byte per point) or ``.npy`` file."""
    return _read_labels(index.root / str(index.frames.labels[row]))


def _name(key: Key) -> str:
    return "/".join(part for part in key if part)


def _frames(
    root: Path, about: FolderDescription, keys: Sequence[Key], files: Mapping[str, Mapping[Key, str]]
) -> FrameTable:
    split, unlabelled = np.full(len(keys), "train"), _fitting(root, keys, "unlabelled", about.unlabelled)
    location = np.full(len(keys), "", dtype=f"<U{max(map(len, about.domains), default=1)}")
    for name, names in (("val", about.val), ("test", about.test)):
        _assign(split, _fitting(root, keys, name, names), name, "train", keys)
    for name, names in about.domains.items():
        _assign(location, _fitting(root, keys, f"domains.{name}", names), name, "", keys)
    labels = [_path(about.labels, key, files["labels"]) if about.labels else "" for key in keys]
    return FrameTable(
        key=np.array([_name(key) for key in keys], str),
        scene=np.array([scene for scene, _ in keys], str),
        location=location,
        description=np.array(["" for _ in keys], str),
        split=split,
        sweep=np.array([_path(about.sweeps, key, files["sweeps"]) for key in keys], str),
        labels=np.where(unlabelled, "", np.array(labels, str)),
    )


def _assign(column: np.ndarray, chosen: np.ndarray, name: str, free: str, keys: Sequence[Key]) -> None:
    taken = np.flatnonzero(chosen & (column != free))
    if len(taken):
        frame = _name(keys[int(taken[0])])
        raise DataError(f"Frame {frame} is in '{column[taken[0]]}' and in '{name}' by {NAME}; leave it in one")
    column[chosen] = name


def _fitting(root: Path, keys: Sequence[Key], kind: str, names: Names) -> np.ndarray:
    """Which frames match ``names``; each name must match a frame."""
    if isinstance(names, str):
        lines = read_text(
            root / names, "list", f"{NAME} names it under {kind}; write it with one name per line"
        ).splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    chosen = np.zeros(len(keys), bool)
    for name in names:
        fits = np.array([fnmatchcase(key[0], name) or fnmatchcase(_name(key), name) for key in keys])
        if not fits.any():
            raise DataError(
                f"No frame and no scene matches '{name}' under {kind} in {root / NAME}; correct or remove it"
            )
        chosen |= fits
    return chosen


def _path(pattern: str, key: Key, found: Mapping[Key, str]) -> str:
    """The file of a frame, or its expected path."""
    return found.get(key) or pattern.replace("{scene}", key[0]).replace("{frame}", key[1])


def _images(
    root: Path,
    about: FolderDescription,
    keys: Sequence[Key],
    files: Mapping[str, Mapping[Key, str]],
    cameras: Sequence[str],
) -> tuple[list[ImageRow], dict[str, Lens]]:
    """The images of every frame, and the lenses of the cameras."""
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    lenses: dict[tuple[str, str], Lens | None] = {}
    rows = []
    for index, key in enumerate(keys):
        for camera in cameras:
            found = files[f"images.{camera}"]
            scene = (camera, key[0])
            if scene not in sizes:
                sizes[scene] = common_size([root / path for other, path in found.items() if other[0] == key[0]])
            calibration = _calibration(root, _path(str(about.calibration), key, {}), camera, sizes[scene])
            if lenses.setdefault(scene, calibration.lens) != calibration.lens:
                raise DataError(f"The lens of camera '{camera}' must be the same in all frames of scene '{key[0]}'")
            rows.append(
                ImageRow(
                    frame=index,
                    key=f"{camera}/{_name(key)}",
                    camera=camera,
                    path=_path(about.images[camera], key, found),
                    size=sizes[scene],
                    intrinsics=calibration.intrinsics,
                    camera_from_lidar=calibration.camera_from_lidar,
                )
            )
    shared = {camera for camera in cameras if len({lens for (name, _), lens in lenses.items() if name == camera}) == 1}
    names = {scene: scene[0] if scene[0] in shared else f"{scene[1]}/{scene[0]}" for scene in lenses}
    return rows, {names[scene]: lens for scene, lens in lenses.items() if lens is not None}


def _calibration(root: Path, path: str, camera: str, size: tuple[int, int]) -> FolderCamera:
    cameras = read_folder_calibration(root / path)
    if camera not in cameras:
        raise DataError(f"{path} has no camera '{camera}'; it has {', '.join(cameras)} (see docs/data/folder.md)")
    found, where = cameras[camera], f"camera '{camera}' in {path}"
    if found.size not in (None, size):
        raise DataError(
            f"The calibration of {where} is for images of {found.size[0]}x{found.size[1]} pixels, they have"
            f" {size[0]}x{size[1]}; scale it, or restore the images"
        )
    check_calibration(where, found.intrinsics, found.camera_from_lidar, size, "correct it (docs/data/folder.md)")
    return found


def _read_labels(path: Path) -> Integer[np.ndarray, "labels"]:
    if path.suffix in _LABELS:
        return read_raw_labels(path, _LABELS[path.suffix])
    try:
        labels = load_array(path)
    except FileNotFoundError as error:
        raise MissingDataError(f"The label file {path} is missing; restore it, and prepare again") from error
    except (ValueError, OSError) as error:
        raise DataError(f"The label file {path} cannot be read ({error}); write it again") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"The label file {path} must hold one array of integers, one per point; write it again")
    return labels.astype(np.int64)


def _checks(index: FrameIndex) -> Iterator[Check]:
    columns = index.described["columns"]
    for row, (sweep, labels) in enumerate(zip(index.frames.sweep, index.frames.labels, strict=True)):
        path = index.root / str(sweep)
        yield path, partial(_sweep_fault, path, columns)
        yield index.root / str(labels), partial(_label_fault, index.root, str(labels), path, columns)
        for image in index.images_of(row):
            width, height = index.images.size[image]
            picture = index.root / str(index.images.path[image])
            yield picture, partial(image_fault, picture, (int(width), int(height)))


def _row_bytes(sweep: Path, columns: int | None) -> int | None:
    """Bytes per point of a raw sweep; None for other formats."""
    suffix = sweep_suffix(sweep)
    return 4 * (columns or COLUMNS[suffix]) if suffix in COLUMNS else None


def _sweep_fault(sweep: Path, columns: int | None) -> str | None:
    row_bytes = _row_bytes(sweep, columns)
    if row_bytes is not None:
        return binary_fault(sweep, "sweep", row_bytes)
    try:
        read_points(sweep)
    except (DataError, MissingDataError) as error:
        return str(error)
    return None


def _label_fault(root: Path, labels: str, sweep: Path, columns: int | None) -> str | None:
    if not labels:
        return None
    if _sweep_fault(sweep, columns) is None:
        row_bytes = _row_bytes(sweep, columns)
        points = len(read_points(sweep)) if row_bytes is None else sweep.stat().st_size // row_bytes
    else:
        points = None
    path = root / labels
    if path.suffix in _LABELS:
        return label_fault(path, _LABELS[path.suffix], points)
    try:
        found = _read_labels(path)
    except (DataError, MissingDataError) as error:
        return str(error)
    if len(found) and not 0 <= found.min() <= found.max() < 1 << 16:
        return f"the label file has labels {found.min()} to {found.max()}; 0 to 65535 are known: write it again"
    if points is not None and len(found) != points:
        return f"the label file has {len(found)} entries, its sweep has {points} points; write both again"
    return None

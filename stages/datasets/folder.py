"""A user's folder as a data set: its ``dataset.yaml`` describes sweeps, labels, images and calibration."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ...errors import DataError, MissingDataError
from .calibration_checks import check_calibration, lens_fault
from .checks import Check, Faults, Remark, binary_fault, common_size, image_checks, image_size, run_checks
from .folder_calibration import FolderCamera, read_folder_calibration
from .folder_description import (
    NAME,
    FolderDescription,
    Key,
    find_files,
    fitting,
    frame_name,
    likely_files,
    read_description,
)
from .folder_labels import read_folder_labels
from .index import FrameIndex, FrameTable, ImageRow, ImageTable
from .lens import Lens
from .listing import names_apart
from .projection import image_pixels as pixels
from .reader_arguments import choose_cameras, refuse_version, resolve_root
from .sweeps import COLUMNS, RawRows, Sweep, holds_doubles, load_sweep, points_fault, raw_fault, sweep_suffix

__all__ = ["build_index", "check_files", "pixels", "read_labels", "read_sweep"]

log = logging.getLogger(__name__)

_REMEDY = "copy it again from its source"
_REMEDY_OF_IMAGES = f"{_REMEDY}, or, where sizes differ, give each frame a calibration of its own"

#: Number of sweeps whose values tell the columns of a raw file.
_LOOKED_AT = 8


def build_index(root: Path, *, version: str | None = None, cameras: str | Sequence[str] | None = None) -> FrameIndex:
    """Indexes every frame that has a sweep, a label file or an image.

    Raises:
        MissingDataError: ``dataset.yaml``, all sweeps, or a calibration is missing.
        DataError: the description or a calibration is invalid, or a name in it matches no frame.
        ConfigError: unknown camera, or a version is given.
    """
    refuse_version("A folder", version)
    root = resolve_root(
        root,
        dataset="folder",
        holds=f"{NAME}, the description of its files",
        is_root=lambda folder: (folder / NAME).is_file(),
        download="your recordings, and write the description as docs/data/folder.md says",
    )
    about = read_description(root)
    chosen = choose_cameras("all" if cameras is None else cameras, tuple(about.images)) if about.images else ()
    patterns = {"sweeps": about.sweeps, **({"labels": about.label_pattern} if about.label_pattern else {})}
    patterns |= {f"images.{camera}": about.images[camera] for camera in chosen}
    files = {kind: find_files(root, pattern) for kind, pattern in patterns.items()}
    empty = next((kind for kind, found in files.items() if not found and kind != "labels"), None)
    if empty is not None:
        raise MissingDataError(
            f"No file of {root} matches the pattern '{patterns[empty]}' of the {empty} in"
            f" {NAME}{likely_files(root, patterns[empty])}; correct it"
        )
    named = {
        kind: set(map(frame_name, found)) for kind, found in files.items() if kind != "labels" or not about.unlabelled
    }
    if apart := names_apart(named):
        raise DataError(f"{root}: {apart}")
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
        described={
            **_described_rows(root, about, list(files["sweeps"].values())),
            "classes": {name: list(ids) for name, ids in about.classes.items()},
            **({"label_field": about.label_field} if about.label_field is not None else {}),
        },
    )


def check_files(index: FrameIndex) -> Faults:
    """Checks every file: sweeps are complete, one label per point, images complete and of one size per scene."""
    labelled = int(np.count_nonzero(index.frames.labels != ""))
    return run_checks(_checks(index), len(index.frames.key) + labelled + len(index.images.key))


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """Returns the points of a frame."""
    path = index.root / str(index.frames.sweep[row])
    rows = _rows(path, index)
    return load_sweep(path) if rows is None else load_sweep(path, columns=rows.columns, dtype=rows.dtype)


def read_labels(index: FrameIndex, row: int, sweep: Sweep) -> Int64[np.ndarray, "labels"]:
    """Returns the raw ids of a frame; ``NO_LABEL`` for a negative number."""
    path = index.root / str(index.frames.labels[row])
    return _labels(path, len(sweep.points), index)


def _labels(path: Path, points: int | None, index: FrameIndex) -> Int64[np.ndarray, "labels"]:
    described = index.described
    return read_folder_labels(path, points, described.get("label_field"), described.get("dtype", "float32"))


def _rows(sweep: Path, index: FrameIndex) -> RawRows | None:
    """The rows of a raw sweep; None for other formats."""
    suffix = sweep_suffix(sweep)
    columns, dtype = index.described["columns"], index.described.get("dtype", "float32")
    return RawRows(columns or COLUMNS[suffix], dtype) if suffix in COLUMNS else None


def _described_rows(root: Path, about: FolderDescription, sweeps: Sequence[str]) -> dict[str, object]:
    """What the index says of raw sweeps: the description, or what the values of most of a few say, with a warning.

    Columns are None where those of the suffix hold; float32, as ever, is not named.
    """
    found = Counter[RawRows | None]()
    raw = [path for path in sweeps if sweep_suffix(Path(path)) in COLUMNS]
    for path in raw[:: max(1, -(-len(raw) // _LOOKED_AT))] if about.columns is None or about.dtype is None else ():
        with suppress(DataError, MissingDataError):
            found[load_sweep(root / path, columns=about.columns, dtype=about.dtype).guessed] += 1
    rows = found.most_common(1)[0][0] if found else None
    if rows is not None:
        log.warning(
            "The values of the sweeps repeat after %s, as %d of %d sweeps show, and are read so; write what is true"
            " into %s: 'columns: %d' and 'dtype: %s'",
            *(rows, found[rows], found.total(), root / NAME, rows.columns, rows.dtype),
        )
    columns, dtype = rows or (about.columns, about.dtype or "float32")
    return {"columns": columns, **({"dtype": dtype} if dtype != "float32" else {})}


def _frames(
    root: Path, about: FolderDescription, keys: Sequence[Key], files: Mapping[str, Mapping[Key, str]]
) -> FrameTable:
    split, unlabelled = np.full(len(keys), "train"), fitting(root, keys, "unlabelled", about.unlabelled)
    location = np.full(len(keys), "", dtype=f"<U{max(map(len, about.domains), default=1)}")
    for name, names in (("val", about.val), ("test", about.test)):
        _assign(split, fitting(root, keys, name, names), name, "train", keys)
    for name, names in about.domains.items():
        _assign(location, fitting(root, keys, f"domains.{name}", names), name, "", keys)
    labels = [_path(about.label_pattern, key, files["labels"]) if about.label_pattern else "" for key in keys]
    return FrameTable(
        key=np.array([frame_name(key) for key in keys], str),
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
        frame = frame_name(keys[int(taken[0])])
        raise DataError(f"Frame {frame} is in '{column[taken[0]]}' and in '{name}' by {NAME}; leave it in one")
    column[chosen] = name


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
    lenses: dict[tuple[str, str], Lens | None] = {}
    each = "{frame}" in str(about.calibration)  # then each image may have a size of its own
    read = lru_cache(maxsize=1)(read_folder_calibration)

    @cache
    def size_in(camera: str, scene: str) -> tuple[int, int]:
        found = files[f"images.{camera}"]
        paths = [root / path for key, path in found.items() if key[0] == scene]
        return common_size(paths or [root / path for path in found.values()], root)

    rows = []
    for index, key in enumerate(keys):
        for camera in cameras:
            found = files[f"images.{camera}"]
            own = image_size(root / found[key]) if each and key in found else None
            size = own or size_in(camera, key[0])
            path = _path(str(about.calibration), key, {})
            calibration = _calibration(read(root / path), path, camera, key[0], size)
            if lenses.setdefault((camera, key[0]), calibration.lens) != calibration.lens:
                raise DataError(f"The lens of camera '{camera}' must be the same in all frames of scene '{key[0]}'")
            rows.append(
                ImageRow(
                    frame=index,
                    key=f"{camera}/{frame_name(key)}",
                    camera=camera,
                    path=_path(about.images[camera], key, found),
                    size=size,
                    intrinsics=calibration.intrinsics,
                    camera_from_lidar=calibration.camera_from_lidar,
                )
            )
    shared = {camera for camera in cameras if len({lens for (name, _), lens in lenses.items() if name == camera}) == 1}
    names = {scene: scene[0] if scene[0] in shared else f"{scene[1]}/{scene[0]}" for scene in lenses}
    return rows, {names[scene]: lens for scene, lens in lenses.items() if lens is not None}


def _calibration(
    cameras: Mapping[str, FolderCamera], path: str, camera: str, scene: str, size: tuple[int, int]
) -> FolderCamera:
    if camera not in cameras:
        raise DataError(f"{path} has no camera '{camera}'; it has {', '.join(cameras)} (see docs/data/folder.md)")
    found, where = cameras[camera], f"camera '{camera}' in {path}"
    if found.size not in (None, size):
        raise DataError(
            f"The calibration of {where} is for images of {found.size[0]}x{found.size[1]} pixels, they have"
            f" {size[0]}x{size[1]}; {'size is [width, height]' if found.size == size[::-1] else 'scale it'}, or restore"
            " the images"
        )
    check_calibration(where, found.intrinsics, found.camera_from_lidar, size, "correct it (docs/data/folder.md)")
    if found.lens and (fault := lens_fault(found.lens, size)):
        raise DataError(f"The lens of {where}{f', scene {scene},' if scene else ''} {fault}")
    return found


def _checks(index: FrameIndex) -> Iterator[Check]:
    for row, (sweep, labels) in enumerate(zip(index.frames.sweep, index.frames.labels, strict=True)):
        path = index.root / str(sweep)
        yield path, partial(_sweep_fault, path, _rows(path, index))
        if labels:
            yield index.root / str(labels), partial(_label_fault, index, index.root / str(labels), path)
        yield from image_checks(index, row, remedy=_REMEDY_OF_IMAGES)


def _sweep_fault(sweep: Path, rows: RawRows | None) -> str | Remark | None:
    return points_fault(partial(load_sweep, sweep)) if rows is None else raw_fault(sweep, rows, remedy=_REMEDY)


def _points(sweep: Path, rows: RawRows | None) -> int | None:
    """Number of points of a sweep; None if it is damaged."""
    try:
        if rows is not None:
            return None if binary_fault(sweep, "sweep", rows.bytes) else sweep.stat().st_size // rows.bytes
        return len(load_sweep(sweep).points)
    except (DataError, MissingDataError):
        return None


def _label_fault(index: FrameIndex, labels: Path, sweep: Path) -> str | None:
    rows = _rows(sweep, index)
    fault = _label_mismatch(index, labels, sweep, rows)
    singles = fault is not None and rows is not None and rows.dtype == "float32" and sweep.is_file()
    return None if singles and holds_doubles(sweep.read_bytes()) else fault  # the sweep's fault is reported


def _label_mismatch(index: FrameIndex, labels: Path, sweep: Path, rows: RawRows | None) -> str | None:
    points = _points(sweep, rows)
    if points is None and labels == sweep:
        return None
    try:
        found = len(_labels(labels, points, index))
    except (DataError, MissingDataError) as error:
        return str(error)
    if points is None or found == points:
        return None
    if labels == sweep and index.described.get("label_field") is None:
        return f"the labels are in the sweep itself; name their column, from 0: 'label_field' in {NAME}; prepare again"
    other = sweep.stat().st_size / (rows.bytes // rows.columns * found) if rows and found else 0
    columns = f" (or it has {other:.0f} numbers per point: 'columns: {other:.0f}' in {NAME})"
    hint = columns if other in range(3, 65) else ""
    return f"the label file has {found} entries, its sweep has {points} points{hint}; write both again"

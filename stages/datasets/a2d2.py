"""A2D2, the semantic segmentation set: front-centre LiDAR views with a pixel per point, and label images.

Images and label images are stored distorted; ``cams_lidars.json`` has the lens parameters, and the pixels (row, column)
of points refer to the undistorted images. A point's class is the colour of the undistorted label image at its pixel.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
from jaxtyping import Float64, Int64

from ...errors import DataError, MissingDataError
from .a2d2_calibration import View, check_class_list, read_view
from .catalogue import A2D2_COLOURS
from .checks import Check, Faults, Remark, image_checks, image_fault, missing_since_indexed, run_checks
from .index import FrameIndex, FrameTable, ImageRow, ImageTable
from .label_files import ColourTable, read_colours
from .listing import stems
from .npy_files import load_archive
from .projection import OPTICAL_AXES
from .reader_arguments import choose_cameras, name_some, read_parts, refuse_version, resolve_root
from .sweeps import Sweep, points_fault

__all__ = ["CAMERAS", "build_index", "check_files", "pixels", "read_labels", "read_sweep"]

log = logging.getLogger(__name__)

CAMERAS = ("cam_front_center",)

_CAMERA = CAMERAS[0]
_TEST = "20180807_145028"  # the scene that xMUDA tests on
_WITHOUT_LIDAR = ("20181016_095036", "20181204_191844")
_DOWNLOAD = "https://www.a2d2.audi/a2d2/en/download.html (camera_lidar_semantic.tar and cams_lidars.json)"
_SUFFIXES = {"camera": ".png", "lidar": ".npz", "label": ".png"}
_ARRAYS = ("points", "row", "col")
_COLOURS = ColourTable.of([tuple(bytes.fromhex(colour[1:])) for colour in A2D2_COLOURS])


class _Name(NamedTuple):
    """A frame: its scene and the common parts of its file names, such as ("20180807145028", "000001617")."""

    scene: str
    stamp: str
    number: str

    def path(self, kind: str) -> str:
        return f"{self.scene}/{kind}/{_CAMERA}/{self.stamp}_{kind}_frontcenter_{self.number}{_SUFFIXES[kind]}"


def build_index(
    root: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    allow_missing: bool = False,
) -> FrameIndex:
    """Indexes the front-centre view of every scene; excludes frames whose LiDAR file has no pixels, as published.

    ``allow_missing`` leaves scenes out that lack a folder.

    Raises:
        MissingDataError: the root, a folder of a scene, or the calibration is missing.
        DataError: the calibration is damaged, or the classes differ from A2D2's.
        ConfigError: unknown camera, or a version is given.
    """
    refuse_version("A2D2", version)
    root = resolve_root(
        root,
        dataset="A2D2",
        holds="scenes such as 20180807_145028 with camera, lidar and label in them",
        is_root=lambda folder: bool(_scenes(folder)),
        download=_DOWNLOAD,
    )
    chosen = choose_cameras(CAMERAS if cameras is None else cameras, CAMERAS)
    view = read_view(root / "cams_lidars.json", "front_center")
    check_class_list(root / "class_list.json")
    found, left_out = read_parts(
        _scenes(root),
        partial(_names, root, with_images=bool(chosen)),
        lambda scene: ["/".join(name) for kind in _SUFFIXES for name in sorted(_listed(root, scene, kind))],
        allow_missing=allow_missing,
    )
    names = _with_rows(root, [name for names in found for name in names])
    rows = [_image_row(index, name, view) for index, name in enumerate(names) if chosen]
    return FrameIndex(
        dataset="a2d2",
        version="",
        root=root,
        cameras=chosen,
        frames=FrameTable(
            key=np.array(["/".join(name) for name in names], str),
            scene=np.array([name.scene for name in names], str),
            location=np.array(["" for _ in names], str),
            description=np.array(["" for _ in names], str),
            split=np.array(["val" if name.scene == _TEST else "train" for name in names], str),
            sweep=np.array([name.path("lidar") for name in names], str),
            labels=np.array([name.path("label") for name in names], str),
        ),
        images=ImageTable.of(rows),
        lenses={} if view.lens is None else {_CAMERA: view.lens},
        left_out=left_out,
    )


def check_files(index: FrameIndex) -> Faults:
    """Checks every file: LiDAR archives are complete with a pixel per point, images have the calibrated size."""
    return run_checks(_checks(index), 2 * len(index.frames.key) + len(index.images.key))


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """Returns the points of a frame (x forward, y left, z up) and their pixels in the undistorted image."""
    return _sweep(index.root / str(index.frames.sweep[row]))


def _sweep(path: Path) -> Sweep:
    try:
        points, rows, columns = load_archive(path, _ARRAYS)
    except FileNotFoundError as error:
        raise missing_since_indexed("sweep", path) from error
    except (ValueError, OSError) as error:
        raise DataError(
            f"The sweep {path} is not an archive with the arrays {', '.join(_ARRAYS)} ({error}); copy it again"
        ) from error
    arrays = (points, rows, columns)
    count, numbers = len(rows) if rows.ndim else 0, all(array.dtype.kind in "fiu" for array in arrays)
    if not count or not numbers or [array.shape for array in arrays] != [(count, 3), (count,), (count,)]:
        held = ", ".join(
            f"{name} {list(array.shape)} of {array.dtype}" for name, array in zip(_ARRAYS, arrays, strict=True)
        )
        raise DataError(
            f"The sweep {path} holds {held}; they must be numbers, points [points, 3] and one row and column per point;"
            " copy it again"
        )
    found = np.stack([columns, rows], axis=1).astype(np.float64)
    found[found == 0] = np.finfo(np.float32).tiny  # 0 is inside the image, by the data set's convention
    return Sweep.of(points, found)


def read_labels(index: FrameIndex, row: int, sweep: Sweep) -> Int64[np.ndarray, "labels"]:
    """Returns the class of each point, by ``RAW_NAMES["a2d2"]``; one above the last id for an unknown colour."""
    image = read_colours(index.root / str(index.frames.labels[row]))
    lens = index.lenses.get(_CAMERA)
    if lens is not None:
        image = lens.undistort(image)
    classes = np.full(len(sweep.points), len(A2D2_COLOURS), np.int64)
    pixel = pixels(index, 0, sweep)
    with np.errstate(invalid="ignore"):
        inside = ((pixel > 0) & (pixel < image.shape[1::-1])).all(axis=1)
    columns, rows = pixel[inside].astype(np.int64).T
    found = _COLOURS.find(image[rows, columns])
    classes[inside] = np.where(found >= 0, found, len(A2D2_COLOURS))
    return classes


def pixels(_: FrameIndex, __: int, sweep: Sweep) -> Float64[np.ndarray, "points 2"]:
    """Returns the pixels that the data set stores for its only camera."""
    assert sweep.pixels is not None  # noqa: S101 - read_sweep sets them
    return sweep.pixels


def _scenes(root: Path) -> list[str]:
    """Names of the scenes; empty if ``root`` is not a root."""
    found = root.glob("[0-9]" * 8 + "_" + "[0-9]" * 6)
    return sorted(
        folder.name
        for folder in found
        if folder.name not in _WITHOUT_LIDAR and any((folder / kind).is_dir() for kind in _SUFFIXES)
    )


def _names(root: Path, scene: str, *, with_images: bool) -> list[_Name]:
    """The frames of a scene: each that has one of its files."""
    names = set[_Name]()
    for kind in _SUFFIXES:
        if kind == "camera" and not with_images:
            continue
        folder = root / scene / kind / _CAMERA
        if not folder.is_dir():
            raise MissingDataError(
                f"The folder {folder} is missing; unpack the whole of {_DOWNLOAD} again"
                + (", or index without images: --cameras none" if kind == "camera" else "")
            )
        names |= _listed(root, scene, kind)
    return sorted(names)


def _listed(root: Path, scene: str, kind: str) -> set[_Name]:
    """The frames of a scene that have a file of this kind; none if its folder is missing."""
    parts = [stem.partition(f"_{kind}_frontcenter_") for stem in stems(root / scene / kind / _CAMERA, _SUFFIXES[kind])]
    return {_Name(scene, stamp, number) for stamp, separator, number in parts if separator}


def _with_rows(root: Path, names: list[_Name]) -> list[_Name]:
    """Excludes frames whose LiDAR archive is valid but lacks the pixels of points (an error of the data set)."""
    kept = [name for name in names if "row" in _arrays_of(root / name.path("lidar"))]
    if len(kept) < len(names):
        dropped = ["/".join(name) for name in names if name not in set(kept)]
        some = name_some(dropped)
        log.warning("%d frames are left out, since their LiDAR file has no pixels: %s", len(dropped), some)
    return kept


def _arrays_of(path: Path) -> Collection[str]:
    """Names of the arrays in an archive; all expected ones if it cannot be opened."""
    with suppress(BadZipFile, OSError):
        if path.is_file():
            with ZipFile(path) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
    return _ARRAYS


def _image_row(frame: int, name: _Name, view: View) -> ImageRow:
    return ImageRow(
        frame=frame,
        key="/".join(name),
        camera=_CAMERA,
        path=name.path("camera"),
        size=view.size,
        intrinsics=view.intrinsics,
        camera_from_lidar=OPTICAL_AXES,
    )


def _checks(index: FrameIndex) -> Iterator[Check]:
    size = read_view(index.root / "cams_lidars.json", "front_center").size
    for row, (sweep, labels) in enumerate(zip(index.frames.sweep, index.frames.labels, strict=True)):
        path, label = index.root / str(sweep), index.root / str(labels)
        yield path, partial(_archive_fault, path)
        yield label, partial(image_fault, label, size)
        yield from image_checks(index, row)


def _archive_fault(path: Path) -> str | Remark | None:
    if not path.is_file():  # opening a pipe blocks
        return "the LiDAR file is missing; unpack the download again"
    return points_fault(partial(_sweep, path))

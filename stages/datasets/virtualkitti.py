"""VirtualKITTI 1.3.1: points of the depth images of the ``clone`` renders, and images in six weathers.

Two versions: ``npy``, the point clouds made by the tools of vkitti3D-dataset (their first version), and ``depth``, the
same points computed here from the depth and class images.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from ...errors import ConfigError, MissingDataError, nearest
from .checks import Check, Faults, common_size, image_checks, image_fault, run_checks
from .index import FrameIndex, FrameTable, ImageRow, ImageTable
from .listing import find_stems, stems
from .projection import OPTICAL_AXES, image_pixels
from .reader_arguments import choose_cameras, read_parts, resolve_root
from .sweeps import Sweep
from .virtualkitti_clouds import (
    CLASS_FOLDER,
    cloud_fault,
    cloud_labels,
    cloud_of_depth,
    depth_fault,
    focal_length,
    read_classes,
    read_cloud,
    read_encoding,
)

__all__ = ["VERSIONS", "WEATHERS", "build_index", "check_files", "pixels", "read_labels", "read_sweep"]

VERSIONS = ("npy", "depth")
WEATHERS = ("clone", "fog", "morning", "overcast", "rain", "sunset")

_CAMERA = "front"
_RGB, _DEPTH = "vkitti_1.3.1_rgb", "vkitti_1.3.1_depthgt"
_CLOUDS = ("vkitti3d_npy", "vkitti_npy")
_SOURCE = "clone"  #: the render of points and classes
_DOWNLOAD = "https://github.com/VisualComputingInstitute/vkitti3D-dataset (tools/download_raw_vkitti.sh)"


def build_index(
    root: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    allow_missing: bool = False,
) -> FrameIndex:
    """Indexes every frame of every world; all are train frames.

    ``version``: "npy" or "depth"; None prefers the point clouds. ``cameras`` chooses weathers, "all" (None) or
    some of ``WEATHERS``; training draws one of a frame's weathers, and evaluation uses the first. ``allow_missing``
    leaves worlds out that lack a folder.

    Raises:
        MissingDataError: the root, or a folder of a world, is missing.
        ConfigError: unknown version or weather.
        DataError: none of a world's images can be opened, or its list of colours is damaged.
    """
    root = resolve_root(
        root,
        dataset="VirtualKITTI",
        holds=f"{_RGB}, and {_CLOUDS[0]} or {_DEPTH} and {CLASS_FOLDER}",
        is_root=lambda folder: bool(_versions(folder)),
        download=_DOWNLOAD,
    )
    weathers = choose_cameras("all" if cameras is None else cameras, WEATHERS)
    chosen = _choose_version(root, version)
    worlds, left_out = read_parts(
        _worlds(root, chosen),
        partial(_world, root, chosen, weathers),
        partial(_keys, root, chosen, weathers),
        allow_missing=allow_missing,
    )
    names = [(world.name, stem) for world in worlds for stem in world.stems]
    sizes = {world.name: world.size for world in worlds}
    images = [row for index, name in enumerate(names) for row in _image_rows(index, name, weathers, sizes)]
    sweeps = [_sweep_path(root, chosen, *name) for name in names]
    classes = [f"{CLASS_FOLDER}/{world}/{_SOURCE}/{stem}.png" for world, stem in names]
    return FrameIndex(
        dataset="virtualkitti",
        version=chosen,
        root=root,
        cameras=(_CAMERA,) if weathers else (),
        frames=FrameTable(
            key=np.array(["/".join(name) for name in names], str),
            scene=np.array([world for world, _ in names], str),
            location=np.array(["" for _ in names], str),
            description=np.array(["" for _ in names], str),
            split=np.array(["train" for _ in names], str),
            sweep=np.array(sweeps, str),
            labels=np.array(sweeps if chosen == "npy" else classes, str),
        ),
        images=ImageTable.of(images),
        left_out=left_out,
    )


def check_files(index: FrameIndex) -> Faults:
    """Checks every file: complete point clouds, or depth, class and weather images of one size."""
    per_frame = 1 if index.version == "npy" else 2
    return run_checks(_checks(index), per_frame * len(index.frames.key) + len(index.images.key))


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """Returns the points of a frame nearer than 100 m: x forward, y left, z up, from the camera."""
    path = index.root / str(index.frames.sweep[row])
    return Sweep.of(read_cloud(path)[:, :3]) if index.version == "npy" else cloud_of_depth(path)


def read_labels(index: FrameIndex, row: int, sweep: Sweep) -> Int64[np.ndarray, "labels"]:
    """Returns the class of each point, by ``VIRTUALKITTI``."""
    path = index.root / str(index.frames.labels[row])
    if index.version == "npy":
        return cloud_labels(read_cloud(path))
    return read_classes(path, index.root / CLASS_FOLDER, str(index.frames.scene[row]), sweep)


def pixels(index: FrameIndex, image: int, sweep: Sweep) -> Float64[np.ndarray, "points 2"]:
    """Returns the pixels of points: those of the depth image, or the projection of a point cloud."""
    return image_pixels(index, image, sweep) if sweep.pixels is None else sweep.pixels


def _versions(root: Path) -> list[str]:
    """Versions of a root, preferred first; empty if it is not a root."""
    clouds = any((root / folder).is_dir() for folder in _CLOUDS)
    depths = (root / _DEPTH).is_dir() or (root / CLASS_FOLDER).is_dir()
    return [version for version, exists in zip(VERSIONS, (clouds, depths), strict=True) if exists]


def _choose_version(root: Path, version: str | None) -> str:
    found = _versions(root)
    if version is None:
        return found[0]
    if version not in VERSIONS:
        raise ConfigError(f"VirtualKITTI has no version '{version}'; {nearest(version, VERSIONS)} (option --version)")
    if version not in found:
        raise MissingDataError(f"{root} holds only the version {found[0]}; get the other from {_DOWNLOAD}")
    return version


def _cloud_folder(root: Path) -> str:
    return next(folder for folder in _CLOUDS if (root / folder).is_dir())


def _worlds(root: Path, version: str) -> list[str]:
    """Names of the worlds that have images or sweeps."""
    folders = [root / _RGB, root / (_cloud_folder(root) if version == "npy" else _DEPTH)]
    worlds = {path.name for folder in folders for path in folder.glob("[0-9]" * 4) if path.is_dir()}
    if not worlds:
        raise MissingDataError(f"{' and '.join(map(str, folders))} hold no world such as 0001; get it from {_DOWNLOAD}")
    return sorted(worlds)


class _World(NamedTuple):
    """The frames of a world, and the size of its images; (0, 0) without images."""

    name: str
    stems: list[str]
    size: tuple[int, int]


def _folders(root: Path, version: str, weathers: Sequence[str], world: str) -> list[tuple[Path, str]]:
    """The folders of a world's files, and their suffixes."""
    images = [(root / _RGB / world / weather, ".png") for weather in weathers]
    if version == "depth":
        return [*images, *((root / kind / world / _SOURCE, ".png") for kind in (_DEPTH, CLASS_FOLDER))]
    return [*images, (root / _cloud_folder(root) / world, ".npy")]


def _keys(root: Path, version: str, weathers: Sequence[str], world: str) -> list[str]:
    """The frames of a world: each that has a sweep, a class image or an image."""
    folders = _folders(root, version, weathers, world)
    return [f"{world}/{stem}" for stem in sorted(set[str]().union(*(stems(*folder) for folder in folders)))]


def _world(root: Path, version: str, weathers: Sequence[str], world: str) -> _World:
    for folder, _ in _folders(root, version, weathers, world):
        if not folder.is_dir():
            there = [name for name in WEATHERS if (root / _RGB / world / name).is_dir()]
            others = ",".join(there) or "none"
            hint = f", or choose what is there: --cameras {others}" if _RGB in folder.parts else ""
            raise MissingDataError(f"The folder {folder} is missing; get it from {_DOWNLOAD}{hint}")
    if version == "depth":
        read_encoding(root / CLASS_FOLDER, world)
    names = [key.partition("/")[2] for key in _keys(root, version, weathers, world)]
    return _World(world, names, _size(*(root / _RGB / world / weather for weather in weathers)) if weathers else (0, 0))


def _sweep_path(root: Path, version: str, world: str, stem: str) -> str:
    if version == "npy":
        return f"{_cloud_folder(root)}/{world}/{stem}.npy"
    return f"{_DEPTH}/{world}/{_SOURCE}/{stem}.png"


def _image_rows(
    frame: int, name: tuple[str, str], weathers: Sequence[str], sizes: Mapping[str, tuple[int, int]]
) -> Iterator[ImageRow]:
    world, stem = name
    for weather in weathers:
        yield ImageRow(
            frame=frame,
            key=f"{world}/{weather}/{stem}",
            camera=_CAMERA,
            path=f"{_RGB}/{world}/{weather}/{stem}.png",
            size=sizes[world],
            intrinsics=_intrinsics(sizes[world]),
            camera_from_lidar=OPTICAL_AXES,
        )


def _size(*folders: Path) -> tuple[int, int]:
    return common_size(
        [path for folder in folders for path in sorted(find_stems(folder, [".png"]).values())], folders[0]
    )


def _intrinsics(size: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
    """The published camera, c = (620.5, 187) at pixel centres, scaled to the size of the renders."""
    width, height = size
    focal = focal_length(width)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def _checks(index: FrameIndex) -> Iterator[Check]:
    worlds = sorted(set(index.frames.scene.tolist())) if index.version == "depth" else []
    sizes = {world: _size(index.root / _DEPTH / world / _SOURCE) for world in worlds}
    for row, (sweep, labels) in enumerate(zip(index.frames.sweep, index.frames.labels, strict=True)):
        path, classes = index.root / str(sweep), index.root / str(labels)
        if index.version == "npy":
            yield path, partial(cloud_fault, path)
        else:
            size = sizes[str(index.frames.scene[row])]
            yield path, partial(depth_fault, path, size)
            yield classes, partial(image_fault, classes, size)
        yield from image_checks(index, row)

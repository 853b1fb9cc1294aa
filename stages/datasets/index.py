"""The index of a data set: columns over frames and images.

It holds paths relative to the data root, calibration, sizes and scene facts, but no points or pixels. On disk it is a
folder: ``index.json`` (facts and digest) and the ``.npz`` file of columns that it names (plain arrays, no objects).
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float64, Int64

from ...errors import DataError, MissingDataError
from ...files import read_json, write_bytes, write_json
from ...locks import exclusive_lock
from .lens import Lens

__all__ = ["FrameIndex", "FrameTable", "ImageRow", "ImageTable"]

INDEX_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class FrameTable:
    """One row per LiDAR keyframe; every column has length F. Strings are numpy unicode arrays."""

    key: np.ndarray  #: unique name of the frame (nuScenes: the sample token)
    scene: np.ndarray
    location: np.ndarray
    description: np.ndarray  #: description of the scene (nuScenes), or its weather
    split: np.ndarray  #: the official split: "train", "val" (the test set of the settings) or "test" (no labels)
    sweep: np.ndarray  #: path of the file of the points, relative to the root
    labels: np.ndarray  #: path of the label file, relative to the root; "" if the frame has none


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """One row per camera image; every column has length I. The images of a frame are consecutive, frames in order.

    A data set without images has no row. Several images of one camera in a frame show the same scene in other weather
    (VirtualKITTI): training draws one of them, evaluation uses the first.

    ``camera_from_lidar`` maps homogeneous points of the sweep (metres, LiDAR frame) to the camera frame (z forward, x
    right, y down), ego motion between the two stamps included. ``intrinsics`` maps camera coordinates to pixels of the
    stored image, or of the undistorted one if the index has a lens for the camera.
    """

    frame: Int64[np.ndarray, "images"]  #: row of the frame table
    key: np.ndarray  #: unique name of the image (nuScenes: the sample_data token)
    camera: np.ndarray
    path: np.ndarray  #: relative to the root
    size: Int64[np.ndarray, "images 2"]  #: width, height in pixels
    intrinsics: Float64[np.ndarray, "images 3 3"]
    camera_from_lidar: Float64[np.ndarray, "images 4 4"]

    @classmethod
    def of(cls, rows: Sequence["ImageRow"]) -> "ImageTable":
        """Returns the table of ``rows``."""
        return cls(
            frame=np.array([row.frame for row in rows], np.int64),
            key=np.array([row.key for row in rows], str),
            camera=np.array([row.camera for row in rows], str),
            path=np.array([row.path for row in rows], str),
            size=np.array([row.size for row in rows], np.int64).reshape(-1, 2),
            intrinsics=np.array([row.intrinsics for row in rows], np.float64).reshape(-1, 3, 3),
            camera_from_lidar=np.array([row.camera_from_lidar for row in rows], np.float64).reshape(-1, 4, 4),
        )


class ImageRow(NamedTuple):
    """One row of the image table."""

    frame: int
    key: str
    camera: str
    path: str
    size: tuple[int, int]
    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_lidar: Float64[np.ndarray, "4 4"]


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """The index of a data set, input of stages one and two. ``root`` is absolute and not part of the digest."""

    dataset: str  #: the reader's name, such as "nuscenes"
    version: str
    root: Path
    cameras: tuple[str, ...]
    frames: FrameTable
    images: ImageTable
    #: Camera, or scene/camera where scenes differ -> lens, if its images are stored distorted.
    lenses: Mapping[str, Lens] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)  #: columns and classes of a user's folder, as JSON
    left_out: Mapping[str, str] = field(default_factory=dict)  #: incomplete frames: key -> reason; not in the digest

    def __post_init__(self) -> None:
        for name, column in self._columns().items():
            rows = len(self.frames.key if name.startswith("frames.") else self.images.key)
            if len(column) != rows:
                raise DataError(f"The column {name} of the index has {len(column)} rows, its table has {rows}")
        if np.any(np.diff(self.images.frame) < 0):
            raise DataError("The images of the index are not in the order of its frames")

    @property
    def digest(self) -> str:
        """sha256 over every fact and column except the root: equal digests mean equal frames and images."""
        facts: list[Any] = [INDEX_FORMAT, self.dataset, self.version, self.cameras]
        if self.lenses:
            facts.append(self._plain_lenses())
        if self.described:
            facts.append(self.described)
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, column in sorted(self._columns().items()):
            digest.update(f"{name}{column.dtype.str}{column.shape}".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def images_of(self, frame: SupportsIndex) -> Int64[np.ndarray, "views"]:
        """Returns the rows of the image table that belong to the frame in row ``frame``."""
        row = int(frame)
        first, last = np.searchsorted(self.images.frame, [row, row + 1])
        return np.arange(first, last)

    def without(self, left_out: Mapping[str, str]) -> "FrameIndex":
        """Returns a copy without the frames in ``left_out`` (key -> reason), which is added to the copy's own."""
        kept = ~np.isin(self.frames.key, list(left_out))
        shown = kept[self.images.frame]
        frames = {f.name: getattr(self.frames, f.name)[kept] for f in fields(FrameTable)}
        images = {f.name: getattr(self.images, f.name)[shown] for f in fields(ImageTable)}
        images["frame"] = (np.cumsum(kept) - 1)[images["frame"]]
        everything = {**self.left_out, **left_out}
        return replace(self, frames=FrameTable(**frames), images=ImageTable(**images), left_out=everything)

    def has_labels(self, frames: Int64[np.ndarray, "chosen"]) -> bool:
        """Whether one of the frames in these rows has a label file."""
        return bool((self.frames.labels[frames] != "").any())

    def lens_of(self, image: SupportsIndex) -> Lens | None:
        """Returns the lens of the image in row ``image``; None if it is stored as a pinhole view."""
        row = int(image)
        camera, scene = str(self.images.camera[row]), str(self.frames.scene[self.images.frame[row]])
        return self.lenses.get(camera) or self.lenses.get(f"{scene}/{camera}")

    def save(self, folder: Path) -> None:
        """Writes the index to ``folder`` atomically.

        The columns get a unique file name, a rename replaces the facts that name them, and then the older columns are
        deleted. A lock serialises several processes.
        """
        with exclusive_lock(folder, work="saves an index", wait=True):
            self._write(folder)

    def _write(self, folder: Path) -> None:
        columns, digest = {name: _packed(column) for name, column in self._columns().items()}, self.digest
        file_of_columns = folder / f"columns-{digest[:12]}.npz"
        archive = io.BytesIO()  # on a full disk, numpy would leave its archive open
        np.savez_compressed(archive, **columns)
        write_bytes(file_of_columns, archive.getbuffer())
        write_json(
            folder / "index.json",
            {
                "columns": file_of_columns.name,
                "format": INDEX_FORMAT,
                "dataset": self.dataset,
                "version": self.version,
                "root": str(self.root),
                "cameras": list(self.cameras),
                "frames": len(self.frames.key),
                "images": len(self.images.key),
                "digest": digest,
                **({"lenses": self._plain_lenses()} if self.lenses else {}),
                **({"described": self.described} if self.described else {}),
                **({"left_out": dict(self.left_out)} if self.left_out else {}),
            },
        )
        for older in (*folder.glob("columns-*.npz"), *folder.glob("*.partial")):
            if older != file_of_columns:
                older.unlink()

    @classmethod
    def load(cls, folder: Path) -> "FrameIndex":
        """Opens a saved index.

        Raises:
            MissingDataError: ``folder`` holds no index.
            DataError: the index is of another format, or its facts and columns differ.
        """
        facts, columns = _read(folder)
        found = facts.get("format")
        if found != INDEX_FORMAT:
            raise DataError(
                f"The index in {folder} has format {found}, this version reads {INDEX_FORMAT}; run 'xd3d prepare' again"
            )
        try:
            index = cls(
                dataset=facts["dataset"],
                version=facts["version"],
                root=Path(facts["root"]),
                cameras=tuple(facts["cameras"]),
                frames=FrameTable(**{f.name: columns[f"frames.{f.name}"] for f in fields(FrameTable)}),
                images=ImageTable(**{f.name: columns[f"images.{f.name}"] for f in fields(ImageTable)}),
                lenses={name: Lens.from_json(lens) for name, lens in facts.get("lenses", {}).items()},
                described=facts.get("described", {}),
                left_out=facts.get("left_out", {}),
            )
            expected = facts["digest"]
        except KeyError as error:
            raise DataError(f"The index in {folder} lacks {error}; run 'xd3d prepare' again") from error
        if index.digest != expected:
            raise DataError(
                f"The index in {folder} is damaged: its columns do not match its digest; run 'xd3d prepare' again"
            )
        return index

    def _plain_lenses(self) -> dict[str, Any]:
        return {name: lens.to_json() for name, lens in sorted(self.lenses.items())}

    def _columns(self) -> dict[str, np.ndarray]:
        tables: dict[str, FrameTable | ImageTable] = {"frames": self.frames, "images": self.images}
        return {f"{name}.{f.name}": getattr(table, f.name) for name, table in tables.items() for f in fields(table)}


def _packed(column: np.ndarray) -> np.ndarray:
    """ASCII text as bytes, a quarter of the size: text dominates the time to open a large index."""
    if column.dtype.kind != "U":
        return column
    codes = column.view(np.uint32) if column.dtype.itemsize else np.zeros(0, np.uint32)
    return column.astype("S") if (codes < 128).all() else column


def _unpacked(column: np.ndarray) -> np.ndarray:
    return column.astype("U") if column.dtype.kind == "S" else column


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and columns of the index in ``folder``, not yet checked against each other."""
    try:
        facts: dict[str, Any] = read_json(folder / "index.json")
        try:
            columns = _read_columns(folder / facts["columns"])
        except FileNotFoundError:  # another process may have saved an index since, and removed these columns
            facts = read_json(folder / "index.json")
            columns = _read_columns(folder / facts["columns"])
    except FileNotFoundError as error:
        raise MissingDataError(
            f"No index in {folder}; make one with: xd3d prepare --dataset NAME --root DIR"
        ) from error
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"The index in {folder} cannot be read ({error}); run 'xd3d prepare' again") from error
    return facts, columns


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {name: _unpacked(stored[name]) for name in stored.files}

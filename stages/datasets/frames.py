"""One frame in memory: the points that a camera sees, their labels, and where each lies in each image."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8

from ...errors import DataError, MissingDataError
from ...progress import track
from .index import FrameIndex
from .labels import IGNORE, LabelMerge
from .sweeps import COLUMNS, finite_rows, read_points

__all__ = ["SWEEP_COLUMNS", "Frame", "count_labels", "load_frame", "project"]

#: A nuScenes sweep is rows of five float32: x, y, z (metres, LiDAR frame), intensity (0 to 255), ring.
SWEEP_COLUMNS = COLUMNS[".pcd.bin"]

#: The largest float32 below one: a point strictly inside an image stays inside it when its place is rounded.
_BELOW_ONE = np.float32(1 - 2**-24)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The P points of a sweep that at least one of the frame's V indexed cameras sees, and their M projections.

    A point is seen when it lies in front of the camera (depth > 0) and strictly inside its image. A point between two
    cameras has two projections; with one camera M equals P and ``projection_point`` counts from 0 to P - 1.
    """

    points: Float32[np.ndarray, "points 3"]  #: metres, LiDAR frame (nuScenes: x right, y forward, z up)
    labels: Int64[np.ndarray, "points"]  #: class ids of the merge, or ``IGNORE``
    source_rows: Int64[np.ndarray, "points"]  #: rows of the kept points in the sweep file, ascending
    image_rows: Int64[np.ndarray, "views"]  #: rows of the index's image table
    projection_point: Int64[np.ndarray, "projections"]  #: row of ``points``
    projection_view: Int64[np.ndarray, "projections"]  #: row of ``image_rows``
    projection_uv: Float32[np.ndarray, "projections 2"]  #: (u, v) as fractions of width and height, inside (0, 1)


def load_frame(index: FrameIndex, row: SupportsIndex, merge: LabelMerge | None) -> Frame:
    """Read the frame in ``row`` of the index's frame table. A frame without a label file is ``IGNORE`` throughout.

    Without ``merge`` every frame is, and no label file is opened.

    Raises:
        MissingDataError: the sweep or the label file is gone.
        DataError: the sweep is truncated or holds NaN, the label file has another length, or a label is out of range.
    """
    row = int(row)
    sweep = _read_sweep(index.root / str(index.frames.sweep[row]))
    labels = _read_labels(index, row, merge, len(sweep))
    image_rows = index.images_of(row)
    views = [_view(index, int(image), sweep) for image in image_rows]
    seen = np.zeros(len(sweep), bool)
    for inside, _ in views:
        seen |= inside
    source_rows = np.flatnonzero(seen)
    new_row = np.cumsum(seen) - 1
    return Frame(
        points=sweep[source_rows],
        labels=labels[source_rows],
        source_rows=source_rows,
        image_rows=image_rows.astype(np.int64),
        projection_point=_join([new_row[inside] for inside, _ in views], np.int64),
        projection_view=_join([np.full(len(uv), view) for view, (_, uv) in enumerate(views)], np.int64),
        projection_uv=np.concatenate([uv for _, uv in views] or [np.zeros((0, 2), np.float32)]),
    )


def project(
    points: Float[np.ndarray, "points 3"],
    camera_from_lidar: Float64[np.ndarray, "4 4"],
    intrinsics: Float64[np.ndarray, "3 3"],
) -> tuple[Float64[np.ndarray, "points 2"], Float64[np.ndarray, "points"]]:
    """Pixel coordinates (x, y) and depth (metres along the camera's z) of points given in the LiDAR frame.

    Computed in float64. The pixels of points with depth <= 0 have no meaning and are NaN.
    """
    in_camera = points.astype(np.float64) @ camera_from_lidar[:3, :3].T + camera_from_lidar[:3, 3]
    depth = in_camera[:, 2]
    homogeneous = in_camera @ intrinsics.T
    pixels = np.full((len(points), 2), np.nan)
    ahead = depth > 0
    pixels[ahead] = homogeneous[ahead, :2] / homogeneous[ahead, 2:]
    return pixels, depth


def count_labels(index: FrameIndex, rows: Iterable[SupportsIndex], merge: LabelMerge) -> Int64[np.ndarray, "classes"]:
    """Points per class over the kept points of the frames in ``rows``, with a progress bar; ignored ones left out."""
    chosen = list(rows)
    counts = np.zeros(len(merge.classes), np.int64)
    for row in track(chosen, "counting labels", len(chosen), "frame"):
        labels = load_frame(index, row, merge).labels
        counts += np.bincount(labels[labels != IGNORE], minlength=len(counts))
    return counts


def _join(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def _view(
    index: FrameIndex, image: int, sweep: Float32[np.ndarray, "points 3"]
) -> tuple[Bool[np.ndarray, "points"], Float32[np.ndarray, "seen 2"]]:
    """Which points the image shows, and their places in it."""
    images = index.images
    size = images.size[image]
    pixels, _ = project(sweep, images.camera_from_lidar[image], images.intrinsics[image])
    with np.errstate(invalid="ignore"):
        inside = np.all((pixels > 0) & (pixels < size), axis=1)
    uv = (pixels[inside] / size).astype(np.float32)
    return inside, np.clip(uv, np.finfo(np.float32).tiny, _BELOW_ONE)


def _read_sweep(path: Path) -> Float32[np.ndarray, "points 3"]:
    points = read_points(path, columns=SWEEP_COLUMNS)
    bad = int((~finite_rows(points)).sum())
    if bad:
        raise DataError(f"The sweep {path} holds {bad} points with a NaN or infinite coordinate; copy it again")
    return points


def _read_labels(index: FrameIndex, row: int, merge: LabelMerge | None, points: int) -> Int64[np.ndarray, "points"]:
    if merge is None or not str(index.frames.labels[row]):
        return np.full(points, IGNORE, np.int64)
    path = index.root / str(index.frames.labels[row])
    raw: UInt8[np.ndarray, labels] = np.frombuffer(_label_bytes(path), np.uint8)
    if len(raw) != points:
        raise DataError(
            f"The label file {path} has {len(raw)} labels, but its sweep {index.frames.sweep[row]} has {points} points;"
            " copy both again"
        )
    try:
        return merge.apply(raw)
    except DataError as error:
        raise DataError(f"The label file {path} is damaged: {error}; copy it again") from error


def _label_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingDataError(
            f"The label file {path} is gone since the data set was indexed; put it back, or run 'xd3d prepare' again"
        ) from error

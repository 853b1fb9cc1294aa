"""One frame in memory: the points that a camera sees, their labels, and their projections to each image."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from ...errors import DataError
from ...progress import track
from .index import FrameIndex
from .labels import IGNORE, LabelMerge
from .projection import inside_image
from .readers import READERS, FrameReader, reader_of
from .sweeps import Sweep

__all__ = ["Frame", "count_labels", "join_classless", "join_frames", "load_frame"]

log = logging.getLogger(__name__)

#: The largest float32 below one: a point strictly inside an image stays inside it when its coordinate is rounded.
_BELOW_ONE = np.float32(1 - 2**-24)

#: Horizontal length of the optical axis of a camera that looks straight up or down, rounded numbers included.
_VERTICAL = 1e-3


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The P points of a sweep that at least one of the frame's V images shows, and their M projections.

    A point is shown when it lies in front of the camera (depth > 0) and strictly inside its image. A point between two
    cameras has two projections; with one camera M equals P and ``projection_point`` counts from 0 to P - 1. Without
    images, or with ``every_point``, all points are kept and some or all have no projection. ``points`` are float32, or
    float64 for a cloud far from its origin (``Sweep``).
    """

    points: Float[np.ndarray, "points 3"]  #: metres, LiDAR frame (nuScenes: x right, y forward; others: x forward)
    labels: Int64[np.ndarray, "points"]  #: class ids of the merge, or ``IGNORE``
    source_rows: Int64[np.ndarray, "points"]  #: rows of the kept points in the sweep, ascending
    image_rows: Int64[np.ndarray, "views"]  #: rows of the index's image table
    projection_point: Int64[np.ndarray, "projections"]  #: row of ``points``
    projection_view: Int64[np.ndarray, "projections"]  #: row of ``image_rows``
    projection_uv: Float32[np.ndarray, "projections 2"]  #: (u, v) as fractions of width and height, inside (0, 1)
    dropped: int = 0  #: points of the sweep without usable coordinates, which are left out with their labels
    pseudo: Int64[np.ndarray, "points 2"] | None = None  #: pseudo labels for the 2D and the 3D head, or ``IGNORE``
    classless: Bool[np.ndarray, "points"] | None = None  #: points of no class: simulated raindrops; None: none

    def choose(self, kept: Bool[np.ndarray, "points"]) -> "Frame":
        """Returns the frame with only the points where ``kept`` holds, and their projections."""
        new_row, shown = np.cumsum(kept) - 1, kept[self.projection_point]
        return replace(
            self,
            points=self.points[kept],
            labels=self.labels[kept],
            source_rows=self.source_rows[kept],
            projection_point=new_row[self.projection_point[shown]],
            projection_view=self.projection_view[shown],
            projection_uv=self.projection_uv[shown],
            pseudo=None if self.pseudo is None else self.pseudo[kept],
            classless=None if self.classless is None else self.classless[kept],
        )

    def unlabel(self, rows: Bool[np.ndarray, "points"]) -> "Frame":
        """Returns the frame without a class where ``rows`` holds: labels, and pseudo labels too, are ``IGNORE``."""
        pseudo = None if self.pseudo is None else np.where(rows[:, None], IGNORE, self.pseudo)
        classless = rows if self.classless is None else self.classless | rows
        return replace(self, labels=np.where(rows, IGNORE, self.labels), pseudo=pseudo, classless=classless)

    def facing(self, index: FrameIndex) -> Float32[np.ndarray, "points 3"]:
        """Returns the points, in metres, with y along the first image's optical axis and x to its right.

        For a camera that looks straight up or down, y points to the top of its image. Without images, y is along the
        LiDAR's x.
        """
        ahead = np.array([1.0, 0.0])
        if len(self.image_rows):
            pose = index.images.camera_from_lidar[self.image_rows[0]]
            axis = pose[2, :2] if np.hypot(*pose[2, :2]) > _VERTICAL else -pose[1, :2]
            ahead = axis / np.linalg.norm(axis)
        rotation = np.array([[ahead[1], ahead[0]], [-ahead[0], ahead[1]]])
        return np.column_stack([self.points[:, :2] @ rotation, self.points[:, 2:]]).astype(np.float32)


def join_classless(frames: Sequence[Frame]) -> Bool[np.ndarray, "points"] | None:
    """Returns which points of ``frames``, one frame after the other, have no class; None if no frame marks any."""
    if all(frame.classless is None for frame in frames):
        return None
    masks = [np.zeros(len(frame.points), bool) if frame.classless is None else frame.classless for frame in frames]
    return np.concatenate(masks)


def join_frames(first: Frame, second: Frame) -> Frame:
    """Returns one frame with the points of both, those of ``first`` before the others, each with its own images.

    ``source_rows`` are rows of the frame that the point comes from.
    """
    points, views = len(first.points), len(first.image_rows)
    pseudo = None
    if first.pseudo is not None and second.pseudo is not None:
        pseudo = np.concatenate([first.pseudo, second.pseudo])
    return Frame(
        points=np.concatenate([first.points, second.points]),
        labels=np.concatenate([first.labels, second.labels]),
        source_rows=np.concatenate([first.source_rows, second.source_rows]),
        image_rows=np.concatenate([first.image_rows, second.image_rows]),
        projection_point=np.concatenate([first.projection_point, second.projection_point + points]),
        projection_view=np.concatenate([first.projection_view, second.projection_view + views]),
        projection_uv=np.concatenate([first.projection_uv, second.projection_uv]),
        dropped=first.dropped + second.dropped,
        pseudo=pseudo,
        classless=join_classless([first, second]),
    )


def load_frame(
    index: FrameIndex,
    row: SupportsIndex,
    merge: LabelMerge | None,
    *,
    every_point: bool = False,
    rng: np.random.Generator | None = None,
) -> Frame:
    """Reads the frame in ``row`` of the index's frame table. All labels of a frame without a label file are ``IGNORE``.

    Without ``merge`` no label file is opened and all labels are ``IGNORE``. ``every_point`` keeps points that no image
    shows; an index without images always keeps them. ``rng`` draws among several images of one camera (the same scene
    in other weather); without it the first is used.

    Raises:
        MissingDataError: the sweep or the label file is missing.
        DataError: the sweep is truncated or has no usable point, the label file has another length, or a label is out
            of range.
    """
    row, reader = int(row), reader_of(index)
    sweep = reader.read_sweep(index, row)
    fault = sweep.fault(max_unusable=1.0)
    if fault:
        raise DataError(f"The sweep {index.root / str(index.frames.sweep[row])} is damaged: {fault}")
    labels = _read_labels(index, row, merge, sweep)
    image_rows = _one_per_camera(index, index.images_of(row), rng)
    views = [_view(reader, index, int(image), sweep) for image in image_rows]
    kept = sweep.usable & (every_point or not index.cameras)
    for inside, _ in views:
        kept |= inside
    source_rows = np.flatnonzero(kept)
    new_row = np.cumsum(kept) - 1
    return Frame(
        points=sweep.points[source_rows],
        labels=labels[source_rows],
        source_rows=source_rows,
        image_rows=image_rows.astype(np.int64),
        projection_point=_join([new_row[inside] for inside, _ in views], np.int64),
        projection_view=_join([np.full(len(uv), view) for view, (_, uv) in enumerate(views)], np.int64),
        projection_uv=np.concatenate([uv for _, uv in views] or [np.zeros((0, 2), np.float32)]),
        dropped=int((~sweep.usable).sum()),
    )


def count_labels(
    index: FrameIndex, rows: Iterable[SupportsIndex], merge: LabelMerge, *, every_point: bool = False
) -> Int64[np.ndarray, "classes"]:
    """Returns the points per class over the kept points of the frames in ``rows``, with a progress bar."""
    chosen, dropped = list(rows), 0
    counts = np.zeros(len(merge.classes), np.int64)
    for row in track(chosen, "counting labels", len(chosen), "frame"):
        frame = load_frame(index, row, merge, every_point=every_point)
        counts += np.bincount(frame.labels[frame.labels != IGNORE], minlength=len(counts))
        dropped += frame.dropped
    if dropped:
        log.warning("%d points of %d sweeps have no usable coordinates and are left out", dropped, len(chosen))
    return counts


def _join(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def _one_per_camera(
    index: FrameIndex, image_rows: Int64[np.ndarray, "images"], rng: np.random.Generator | None
) -> Int64[np.ndarray, "views"]:
    cameras = index.images.camera[image_rows]
    if len(np.unique(cameras)) == len(cameras):
        return image_rows
    chosen = []
    for camera in dict.fromkeys(cameras.tolist()):
        same = image_rows[cameras == camera]
        chosen.append(int(same[0 if rng is None else rng.integers(len(same))]))
    return np.array(chosen, np.int64)


def _view(
    reader: FrameReader, index: FrameIndex, image: int, sweep: Sweep
) -> tuple[Bool[np.ndarray, "points"], Float32[np.ndarray, "seen 2"]]:
    """Which points the image shows, and their (u, v) in it."""
    size = index.images.size[image]
    with np.errstate(invalid="ignore", over="ignore"):  # of points that are not usable
        pixels = reader.pixels(index, image, sweep)
    inside = inside_image(pixels, size) & sweep.usable
    uv = (pixels[inside] / size).astype(np.float32)
    return inside, np.clip(uv, np.finfo(np.float32).tiny, _BELOW_ONE)


def _read_labels(index: FrameIndex, row: int, merge: LabelMerge | None, sweep: Sweep) -> Int64[np.ndarray, "points"]:
    points = len(sweep.points)
    if merge is None or not str(index.frames.labels[row]):
        return np.full(points, IGNORE, np.int64)
    path = index.root / str(index.frames.labels[row])
    raw = READERS[index.dataset].read_labels(index, row, sweep)
    if len(raw) != points:
        raise DataError(
            f"The label file {path} has {len(raw)} labels, but its sweep {index.frames.sweep[row]} has {points} points;"
            " copy both again"
        )
    labels = np.full(points, IGNORE, np.int64)
    try:
        labels[sweep.usable] = merge.apply(raw[sweep.usable])
    except DataError as error:
        raise DataError(f"The label file {path} is damaged: {error}; copy it again") from error
    return labels

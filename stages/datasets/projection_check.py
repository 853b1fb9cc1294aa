"""Checks that the calibration projects points into the images: one frame of each scene, before hours of work.

An inverted transform, or one in millimetres or with other axes, is still a valid transform, but it projects the wrong
points into the image, or none. It is detected by the fraction of points that each camera sees, and by comparison with
other interpretations of the same numbers.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from ...errors import DataError
from ...progress import track
from .index import FrameIndex
from .projection import OPTICAL_AXES, inside_image, project
from .readers import READERS
from .sweeps import Sweep

__all__ = ["View", "check_views", "seen_points", "seen_shares", "view_scenes"]

log = logging.getLogger(__name__)

#: A camera that sees a smaller share of the points is looked at: a hint is another reading of its transform that shows
#: so many times more. Wide and telephoto cameras see 2 to 20 %.
_FEW, _TIMES = 0.02, 5
#: Metres. Cameras of one vehicle are nearer to the LiDAR, and to the nearest point of its sweep.
_FROM_LIDAR, _FROM_POINTS = 10.0, 50.0
#: Degrees from which a camera counts as rolled.
_ROLLED = 45.0
#: Metres. A longer translation is guessed to be in millimetres, a shorter one in centimetres.
_MILLIMETRES = 150.0


@dataclass(frozen=True, kw_only=True)
class View:
    """The points of a frame in one of its images: their number, how many it shows, and a better reading, if any."""

    scene: str
    camera: str
    image: int  #: row of the image table
    points: int
    seen: int
    distance: float  #: metres from the camera to the nearest point
    offset: float  #: metres from the camera to the LiDAR; NaN if the LiDAR's origin is not among the points
    roll: float  #: degrees by which the image is turned against the LiDAR's vertical axis z; 180 is upside down
    hint: str  #: another reading of the transform that fits better, as a clause; "" if there is none

    @property
    def share(self) -> float:
        """The share of the points that the image shows."""
        return self.seen / self.points


def view_scenes(index: FrameIndex) -> list[View]:
    """Projects the first frame of each scene to an image of each camera, with a progress bar.

    Raises:
        MissingDataError, DataError: a sweep cannot be read.
    """
    if not index.cameras:
        return []
    rows = np.sort(np.unique(index.frames.scene, return_index=True)[1]).tolist()
    return [view for row in track(rows, "projecting points", len(rows), "scene") for view in _views(index, row)]


def seen_points(
    index: FrameIndex, image: int, sweep: Sweep
) -> tuple[Float64[np.ndarray, "seen 2"], Float64[np.ndarray, "seen"]]:
    """Returns the pixels (x, y) of the points in the image of row ``image``, and their depths in metres."""
    pixels = READERS[index.dataset].pixels(index, image, sweep)
    inside = inside_image(pixels, index.images.size[image])
    pose = index.images.camera_from_lidar[image]
    return pixels[inside], sweep.points[inside] @ pose[2, :3] + pose[2, 3]


def check_views(views: Sequence[View]) -> None:
    """Logs warnings about cameras that see fewer points than is plausible.

    Raises:
        DataError: a camera sees no point in any scene, a scene has no camera that sees one, or a camera is far away
            from all points; the message names the calibration, and what reading of it would show points.
    """
    for kind, known in (("camera", "camera"), ("scene", "scene")):
        for name in dict.fromkeys(getattr(view, known) for view in views):
            same = [view for view in views if getattr(view, known) == name]
            if not any(view.seen for view in same):
                raise DataError(_blind(kind, name, same))
    doubts: dict[tuple[str, str], list[str]] = {}
    for view in views:
        where = f"Camera {view.camera} in scene {view.scene or '(the only one)'}"
        if view.distance > _FROM_POINTS:
            raise DataError(
                f"{where} is, by its calibration, {view.distance:.4g} m away from the nearest point; correct the"
                f" translation, which is in metres{view.hint}"
            )
        if abs(view.roll) > _ROLLED and view.hint:
            raise DataError(
                f"{where} is, by its calibration, rolled by {view.roll:.0f} degrees; correct camera_from_lidar, or turn"
                f" the images and their intrinsics if the camera is mounted that way{view.hint}"
            )
        for kind, doubt in _doubts(view):
            doubts.setdefault((view.camera, kind), []).append(f"{where} {doubt}")
    for first, *others in doubts.values():
        log.warning("%s%s", first, f" (other scenes: {len(others)})" if others else "")


def _doubts(view: View) -> Iterator[tuple[str, str]]:
    """What is implausible about a camera: a kind, and a predicate."""
    if abs(view.roll) > _ROLLED:
        yield "roll", f"is, by its calibration, rolled by {view.roll:.0f} degrees"
    if view.offset > _FROM_LIDAR:
        yield "offset", f"is {view.offset:.3g} m away from the LiDAR; is its calibration in metres?"
    elif not view.seen or view.hint:
        yield "share", f"sees {view.share:.2%} of the points; check its calibration{view.hint}"


def seen_shares(views: Sequence[View]) -> dict[str, list[float]]:
    """Returns the share of points that each camera sees, a number per scene."""
    return {
        camera: [view.share for view in views if view.camera == camera]
        for camera in dict.fromkeys(view.camera for view in views)
    }


def _blind(kind: str, name: str, views: Sequence[View]) -> str:
    what = f"scene {name or '(the only one)'}" if kind == "scene" else f"camera {name}"
    hint = next((view.hint for view in views if view.hint), "")
    verb = "falls into any of its images" + (", in any scene" if kind == "camera" else "")
    distance = min(view.distance for view in views)
    far = f" (the nearest is {distance:.4g} m away)" if distance > _FROM_POINTS else ""
    also = ", or leave the camera out (--cameras)" if kind == "camera" and not hint else ""
    return (
        f"The calibration of {what} is wrong: no point {verb}{far}; camera_from_lidar must map points in metres to x"
        f" right, y down, z forward{also}{hint}"
    )


def _views(index: FrameIndex, row: int) -> Iterator[View]:
    sweep = READERS[index.dataset].read_sweep(index, row).only_usable()
    points = sweep.points
    around = len(points) and (points.min(axis=0) <= 0).all() and (points.max(axis=0) >= 0).all()
    images = index.images_of(row)
    _, first = np.unique(index.images.camera[images], return_index=True)  # other images of a camera show the same
    for image in images[np.sort(first)].tolist():
        seen = len(seen_points(index, image, sweep)[0])
        pose = index.images.camera_from_lidar[image]
        distance = _distance(points, pose)
        known = 0 if distance > _FROM_POINTS else seen
        few = known <= _FEW * len(points) and sweep.pixels is None
        yield View(
            scene=str(index.frames.scene[row]),
            camera=str(index.images.camera[image]),
            image=image,
            points=len(points),
            seen=seen,
            distance=distance,
            offset=float(np.linalg.norm(pose[:3, 3])) if around else np.nan,
            roll=_roll(pose),
            hint=(_hint(index, image, points, known) if few else "") or _upright_hint(pose),
        )


def _distance(points: Float[np.ndarray, "points 3"], pose: Float64[np.ndarray, "4 4"]) -> float:
    """Metres from a camera to the nearest of the points."""
    centre = -pose[:3, :3].T @ pose[:3, 3]
    return float(np.linalg.norm(points - centre, axis=1).min()) if len(points) else 0.0


def _roll(pose: Float64[np.ndarray, "4 4"]) -> float:
    """Degrees about the optical axis by which a camera is turned; 0 for one that looks steeply up or down."""
    right, down = pose[0, 2], -pose[1, 2]
    return float(np.degrees(np.arctan2(right, down))) if np.hypot(right, down) > 0.5 else 0.0


def _upright_hint(pose: Float64[np.ndarray, "4 4"]) -> str:
    """Says that a rolled camera is upright by the inverse of its transform."""
    inverse = np.linalg.inv(pose)
    upright = abs(_roll(inverse)) < _ROLLED < abs(_roll(pose)) and inverse[1, 2] < -0.5
    return ": inverted (lidar_from_camera given) or transposed, it would be upright" if upright else ""


def _hint(index: FrameIndex, image: int, points: Float[np.ndarray, "points 3"], seen: int) -> str:
    """What other reading of the transform would show many more points."""
    pose, intrinsics = index.images.camera_from_lidar[image], index.images.intrinsics[image]
    best, most = "", max(_FEW * len(points), _TIMES * seen)
    for name, other in _readings(pose):
        count = int(inside_image(project(points, other, intrinsics)[0], index.images.size[image]).sum())
        if count > (1.5 if best else 1) * most and _distance(points, other) <= _FROM_LIDAR:
            best, most = name, count
    return f": {best}, it would show {most / len(points):.1%} of them" if best else ""


def _readings(pose: Float64[np.ndarray, "4 4"]) -> Iterator[tuple[str, Float64[np.ndarray, "4 4"]]]:
    """Other transforms that the numbers of ``pose`` may stand for, likely ones first."""
    unit, size = ("millimetres", 1000) if np.linalg.norm(pose[:3, 3]) > _MILLIMETRES else ("centimetres", 100)
    scaled, transposed = pose.copy(), pose.copy()
    scaled[:3, 3] /= size
    transposed[:3, :3] = pose[:3, :3].T
    yield f"with a translation in {unit}", scaled
    yield "inverted (lidar_from_camera given)", np.linalg.inv(pose)
    yield "with its rotation transposed", transposed
    yield "with camera axes x forward, y left, z up", OPTICAL_AXES @ pose
    yield "with an inverse of camera axes x forward, y left, z up", OPTICAL_AXES @ np.linalg.inv(pose)

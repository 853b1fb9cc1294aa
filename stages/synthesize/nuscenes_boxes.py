"""Annotation boxes: the objects that a sweep hits, their visibility and attributes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from .poses import rotation
from .world import ObjectBox

__all__ = ["BoxSight", "attribute", "sights", "visibility"]

MOVING_SPEED = 0.3


@dataclass(frozen=True)
class BoxSight:
    """Statistics of a box in a sweep: number of points in it, and the share of beams towards it that reach it."""

    points: int
    visible: float


def sights(
    boxes: Sequence[ObjectBox], points: Float[np.ndarray, "P 3"], origin: Float64[np.ndarray, " 3"]
) -> list[BoxSight]:
    """Compute the statistics from a sweep's ``points`` and the sensor's ``origin``, all in the world frame, metres.

    Beams whose line crosses a box count: those that end in it hit the object, those that end in front of it were
    occluded, and those that end behind it passed an empty part of the box (under a car, past an arm).
    """
    beams = (points - origin).astype(np.float64)
    lengths = np.linalg.norm(beams, axis=1)
    farthest = float(lengths.max(initial=0.0))
    return [_sight(box, beams, lengths, farthest, origin) for box in boxes]


def _sight(
    box: ObjectBox,
    beams: Float64[np.ndarray, "P 3"],
    lengths: Float64[np.ndarray, " P"],
    farthest: float,
    origin: Float64[np.ndarray, " 3"],
) -> BoxSight:
    half = np.array([box.size[1], box.size[0], box.size[2]]) / 2
    towards = np.array(box.centre) - origin
    reach, distance = float(np.linalg.norm(half)), float(np.linalg.norm(towards))
    if distance - reach > farthest:
        return BoxSight(points=0, visible=0.0)
    cosine = np.sqrt(max(0.0, 1 - (reach / distance) ** 2)) if distance > reach else -1.0
    beams = beams[beams @ (towards / distance) >= cosine * lengths]
    turn = rotation(yaw=box.yaw).T
    start, beams = turn @ -towards, beams @ turn.T
    inside = int(np.all(np.abs(start + beams) <= half, axis=1).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = np.sort([(-half - start) / beams, (half - start) / beams], axis=0)
    enter, leave = near.max(axis=1), far.min(axis=1)
    stopped = int(((leave > enter) & (enter > 1)).sum())
    return BoxSight(points=inside, visible=inside / max(1, inside + stopped))


def visibility(visible: float) -> str:
    """Return the visibility token ("1" to "4") of a visible share."""
    return str(1 + sum(visible >= limit for limit in (0.4, 0.6, 0.8)))


def attribute(box: ObjectBox) -> str | None:
    """Return the attribute of an object, or None for categories without attributes."""
    moving = float(np.hypot(*box.velocity)) > MOVING_SPEED
    if box.category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if box.category.startswith("vehicle."):
        return "vehicle.moving" if moving else "vehicle.parked"
    if box.category.startswith("human.pedestrian."):
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return None

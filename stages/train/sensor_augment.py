"""Sensor augmentation: simulates another mounting height, another scale, dropped beams, early returns and noise.

Points are in the LiDAR frame, metres, so a beam is a direction from the origin. A point that moves along its beam keeps
its pixel: the image features are those of the surface that the image shows in the beam's direction. A point that is
dropped takes its label and its projections with it.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float64

from ..datasets.frames import Frame
from .settings import AugmentSettings

__all__ = ["elevation", "ground_height", "scaled", "vary_sensor"]

BEAMS = 64  #: bands of elevation that are dropped as beams
KEPT = (0.5, 1.0)  #: range of the share of the beams that a sample keeps
FREE_PATH = (8.0, 200.0)  #: metres: range of the mean path to a drop, from dense fog to light snow
ANSWERED = (0.2, 0.8)  #: range of the probability that a beam returns from a drop in front of its surface
NEAREST = 0.5  #: metres: drops nearer than this do not count
LAYER = 0.2  #: metres: thickness of the layers that the ground is looked for in
LOWEST = 0.3  #: metres: least height of a sensor above the ground


def vary_sensor(frame: Frame, settings: AugmentSettings, rng: np.random.Generator) -> Frame:
    """Applies what ``settings`` turn on, in the order of a measurement: mounting, scale, beams, drops, noise."""
    if settings.mount_height:
        frame = mounted(frame, rng.uniform(-settings.mount_height, settings.mount_height))
    if settings.scale:
        frame = scaled(frame, np.exp(rng.uniform(-1, 1) * np.log1p(settings.scale)))
    if settings.beam_drop and rng.random() < settings.beam_drop:
        frame = without_beams(frame, rng)
    if settings.early_returns and rng.random() < settings.early_returns:
        frame = with_early_returns(frame, rng)
    if settings.jitter:
        noise = rng.uniform(0, settings.jitter) * rng.standard_normal(frame.points.shape)
        frame = _moved(frame, frame.points + noise)
    return frame


def scaled(frame: Frame, factor: float) -> Frame:
    """Returns the frame with all points scaled about the sensor."""
    return _moved(frame, frame.points * factor)


def mounted(frame: Frame, raised: float) -> Frame:
    """Simulates a sensor mounted ``raised`` metres higher (negative: lower) over flat ground.

    Points on the ground, and points that would lie below the new ground, move along their beams onto it; the others
    stay. The sensor stays at least ``LOWEST`` metres above the ground.
    """
    z = frame.points[:, 2].astype(np.float64)
    height = -ground_height(frame.points)
    if height <= LOWEST:
        return frame
    new = max(height + raised, LOWEST)
    factor = np.where(z < LAYER - height, new / height, np.minimum(1, new / np.maximum(-z, LOWEST)))
    return _moved(frame, frame.points * factor[:, None])


def without_beams(frame: Frame, rng: np.random.Generator) -> Frame:
    """Returns the frame without random beams: bands of equal elevation between the lowest and the highest point."""
    angles = elevation(frame.points)
    low, high = (angles.min(), angles.max()) if len(angles) else (0.0, 0.0)
    beam = np.minimum((angles - low) / max(high - low, 1e-6) * BEAMS, BEAMS - 1).astype(np.int64)
    kept = (rng.random(BEAMS) < rng.uniform(*KEPT))[beam]
    return frame.choose(kept) if kept.any() else frame


def with_early_returns(frame: Frame, rng: np.random.Generator) -> Frame:
    """Returns the frame with some beams answered by drops in the air, whose distance is exponentially distributed.

    The label of such a point is ``IGNORE``.
    """
    distance = np.linalg.norm(frame.points.astype(np.float64), axis=1)
    path = np.exp(rng.uniform(*np.log(FREE_PATH)))
    drop = NEAREST + rng.exponential(path, len(distance))
    early = (drop < distance) & (rng.random(len(distance)) < rng.uniform(*ANSWERED))
    factor = np.where(early, drop / np.maximum(distance, NEAREST), 1.0)
    return _moved(frame, frame.points * factor[:, None]).unlabel(early)


def ground_height(points: Float[np.ndarray, "points 3"]) -> float:
    """Returns the height of the ground: of the layer with most points in the lower half of a cloud (0 without any)."""
    if not len(points):
        return 0.0
    z = points[:, 2].astype(np.float64)
    low, middle = np.quantile(z, (0.005, 0.5), method="lower")
    layer = np.floor((z[(z >= low) & (z <= middle)] - low) / LAYER).clip(max=1000).astype(np.int64)
    return float(low + LAYER * (np.bincount(layer).argmax() + 0.5))


def elevation(points: Float[np.ndarray, "points 3"]) -> Float64[np.ndarray, "points"]:
    """Returns the angle of each point above the horizon in radians."""
    x, y, z = points.astype(np.float64).T
    return np.arctan2(z, np.hypot(x, y))


def _moved(frame: Frame, points: Float[np.ndarray, "points 3"]) -> Frame:
    return replace(frame, points=points.astype(frame.points.dtype))

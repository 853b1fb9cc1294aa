"""Mixing: a sample of the points of two frames, each with its own labels and images.

| mix | points |
|---|---|
| ``dense`` | all of both: the beams of the second fall between those of the first, at another scale (after Mix3D) |
| ``polar`` | a sector of azimuth of the first, the other azimuths of the second (PolarMix) |
| ``laser`` | alternate bands of elevation of the first and of the second (LaserMix) |

Each point keeps its pixel in the image of its own frame; the sample has the images of both frames.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from ..datasets.frames import Frame, join_frames
from .sensor_augment import elevation, ground_height, scaled
from .settings import Mix

__all__ = ["mix_frames"]

SCALES = (0.65, 1.5)  #: range of the second frame's scale
BANDS = (3, 6)  #: LaserMix: least and largest number of bands
ENDS = (0.01, 0.99)  #: quantiles of the elevation between which the bands lie
SIDES = (0.2, 0.8)  #: quantiles of the first frame's azimuth between which the sector of PolarMix ends


def mix_frames(first: Frame, second: Frame, mix: Mix, rng: np.random.Generator) -> Frame:
    """Mixes two frames, each in the LiDAR frame of its own sensor (metres).

    If one of them has no points, the other is returned.
    """
    if not len(first.points) or not len(second.points):
        return first if len(first.points) else second
    if mix == "dense":
        return join_frames(first, _between(first, second, rng))
    if mix == "polar":
        x, y = first.points[:, :2].astype(np.float64).mean(0)
        ahead = float(np.arctan2(y, x))
        cut, above = np.quantile(_azimuth(first, ahead), rng.uniform(*SIDES)), rng.random() < 0.5
        sides = [(_azimuth(frame, ahead) >= cut) == above for frame in (first, second)]
    else:
        low, high = np.quantile(np.concatenate([elevation(first.points), elevation(second.points)]), ENDS)
        edges = np.linspace(low, high, int(rng.integers(BANDS[0], BANDS[1] + 1)) + 1)[1:-1]
        odd = rng.integers(2)
        sides = [np.digitize(elevation(frame.points), edges) % 2 == odd for frame in (first, second)]
    return join_frames(first.choose(sides[0]), second.choose(~sides[1]))


def _between(first: Frame, second: Frame, rng: np.random.Generator) -> Frame:
    """Returns ``second`` scaled about its sensor, on the ground of ``first``."""
    second = scaled(second, rng.uniform(*SCALES))
    points = second.points.copy()
    points[:, 2] += ground_height(first.points) - ground_height(points)
    return replace(second, points=points)


def _azimuth(frame: Frame, ahead: float) -> Float64[np.ndarray, "points"]:
    """Returns the azimuth of each point in radians, -pi to pi, relative to the direction ``ahead``."""
    x, y = frame.points[:, :2].astype(np.float64).T
    return (np.arctan2(y, x) - ahead + np.pi) % (2 * np.pi) - np.pi

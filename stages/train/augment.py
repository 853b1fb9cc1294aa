"""Augmentation of a point cloud: noise on the rotation, a flip, a rotation about z, and a position in the voxel cube.

The order and the parameters are those of xMUDA's loader. Each sample has its own random generator (``loader``), so a
batch does not depend on the thread that makes it, and is the same after a resume.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from ..datasets.frames import Frame
from .random_streams import Use, generator
from .settings import AugmentSettings

__all__ = ["augment_points", "augmentation_matrix", "crop_points", "sample_generator"]

#: A part with this share of the points is placed as if it were the whole cloud.
_ALL_BUT_STRAYS = 0.99


def sample_generator(seed: int, step: int, position: int, stream: int = 0) -> np.random.Generator:
    """Returns the generator of the sample at ``position`` in micro-batch ``step``; ``stream`` is 1 for the target."""
    return generator(seed, Use.SAMPLE, step, position, stream)


def augmentation_matrix(settings: AugmentSettings, rng: np.random.Generator) -> Float64[np.ndarray, "3 3"]:
    """Draws the matrix that multiplies the cloud's row vectors: (1 + noise), then a flip, then a rotation about z."""
    matrix = np.eye(3) + settings.rotation_noise * rng.standard_normal((3, 3))
    flip, angle = rng.random() < 0.5, rng.uniform(0, 2 * np.pi)
    if settings.flip != "none" and flip:
        matrix[:, "xy".index(settings.flip)] *= -1
    if settings.rotate:
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = matrix @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    return matrix


def augment_points(
    points: Float[np.ndarray, "points 3"], settings: AugmentSettings, cube: float, rng: np.random.Generator
) -> Float32[np.ndarray, "points 3"]:
    """Transforms ``points`` (metres) and moves them into the cube from 0 to ``cube`` metres.

    The smallest coordinates are moved to 0 or, with ``translate``, to a random position that keeps the cloud inside the
    cube. Along an axis on which the cloud is longer than the cube, the cube begins at the smallest coordinate if it
    then holds 99 % of the points, and otherwise covers the interval with the most points, so that a few outliers do not
    determine its position. The other points stay outside.
    """
    moved = points.astype(np.float64) @ augmentation_matrix(settings, rng)
    share = rng.random(3)
    if not len(moved):
        return points.astype(np.float32)
    low, high = _extent(moved, cube)
    moved -= low
    if settings.translate:
        room = cube * (1 - 1e-6) - (high - low)
        moved += np.clip(room, 0, None) * share
    return moved.astype(np.float32)


def _extent(
    points: Float64[np.ndarray, "points 3"], cube: float
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Smallest and largest coordinates of the part of a cloud that is placed in the cube."""
    low, high = points.min(0), points.max(0)
    for axis in np.flatnonzero(high - low >= cube):
        values = np.sort(points[:, axis])
        counts = np.searchsorted(values, values + cube) - np.arange(len(values))  # from each value on
        if counts[0] < _ALL_BUT_STRAYS * len(values):
            start = int(counts.argmax())
            low[axis], high[axis] = values[start], values[start + counts[start] - 1]
    return low, high


def crop_points(
    frame: Frame, crop: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
) -> Bool[np.ndarray, "points"]:
    """Draws a window of ``crop`` pixels (height, width) in each image; returns a mask of the points to keep.

    Points in a window and points in no image are kept. The window is at the bottom of the image, which has
    ``image_size`` pixels, at a random horizontal position.
    """
    height, width = np.minimum(1, np.divide(crop, image_size))
    left = (rng.random(len(frame.image_rows)) * (1 - width))[frame.projection_view]
    u, v = frame.projection_uv.T
    inside = (v >= 1 - height) & (u >= left) & (u < left + width)
    kept = np.ones(len(frame.points), bool)
    kept[frame.projection_point] = False
    kept[frame.projection_point[inside]] = True
    return kept

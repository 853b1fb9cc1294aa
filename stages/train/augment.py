"""Augmentation of a cloud: a noisy rotation, a flip, a turn about z, and a place in the voxel cube.

The order and the numbers are those of xMUDA's loader. Every sample has a generator of its own (``streams.py``), so a
batch is the same whichever thread makes it, and after a resume.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64

from ..datasets.frames import Frame
from .settings import AugmentSettings

__all__ = ["augment_points", "augmentation_matrix", "crop_points"]


def augmentation_matrix(settings: AugmentSettings, rng: np.random.Generator) -> Float64[np.ndarray, "3 3"]:
    """Draw the matrix that a cloud's row vectors are multiplied by: (1 + noise), then a flip, then a turn about z."""
    matrix = np.eye(3) + settings.rotation_noise * rng.standard_normal((3, 3))
    flip, angle = rng.random() < 0.5, rng.uniform(0, 2 * np.pi)
    if settings.flip != "none" and flip:
        matrix[:, "xy".index(settings.flip)] *= -1
    if settings.rotate:
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = matrix @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    return matrix


def augment_points(
    points: Float32[np.ndarray, "points 3"], settings: AugmentSettings, cube: float, rng: np.random.Generator
) -> Float32[np.ndarray, "points 3"]:
    """Transform ``points`` (metres) and put them into the cube from 0 to ``cube`` metres.

    The smallest coordinates land at 0, or anywhere that leaves the cloud inside the cube; of a cloud larger than the
    cube, the far end stays outside.
    """
    moved = points.astype(np.float64) @ augmentation_matrix(settings, rng)
    share = rng.random(3)
    if not len(moved):
        return points
    moved -= moved.min(0)
    if settings.translate:
        room = cube * (1 - 1e-6) - moved.max(0)
        moved += np.clip(room, 0, None) * share
    return moved.astype(np.float32)


def crop_points(
    frame: Frame, crop: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
) -> Bool[np.ndarray, "points"]:
    """Draw a window of ``crop`` pixels (height, width) of each image; the points in one, or in no image, are kept.

    The window stands at the bottom of the image, which has ``image_size`` pixels, and anywhere across it.
    """
    height, width = np.minimum(1, np.divide(crop, image_size))
    left = (rng.random(len(frame.image_rows)) * (1 - width))[frame.projection_view]
    u, v = frame.projection_uv.T
    inside = (v >= 1 - height) & (u >= left) & (u < left + width)
    kept = np.ones(len(frame.points), bool)
    kept[frame.projection_point] = False
    kept[frame.projection_point[inside]] = True
    return kept

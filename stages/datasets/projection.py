"""Projection of LiDAR points to images."""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from .index import FrameIndex
from .sweeps import Sweep

__all__ = ["OPTICAL_AXES", "image_pixels", "inside_image", "project"]

#: Optical axes (x right, y down, z forward) from those of a body (x forward, y left, z up), as a 4x4 transform.
OPTICAL_AXES = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def project(
    points: Float[np.ndarray, "points 3"],
    camera_from_lidar: Float64[np.ndarray, "4 4"],
    intrinsics: Float64[np.ndarray, "3 3"],
) -> tuple[Float64[np.ndarray, "points 2"], Float64[np.ndarray, "points"]]:
    """Returns pixel coordinates (x, y) and depth (metres along the camera's z) of points in the LiDAR frame.

    Computed in float64. The pixels of points with depth <= 0 are NaN.
    """
    in_camera = points.astype(np.float64) @ camera_from_lidar[:3, :3].T + camera_from_lidar[:3, 3]
    depth = in_camera[:, 2]
    homogeneous = in_camera @ intrinsics.T
    pixels = np.full((len(points), 2), np.nan)
    ahead = depth > 0
    pixels[ahead] = homogeneous[ahead, :2] / homogeneous[ahead, 2:]
    return pixels, depth


def inside_image(pixels: Float64[np.ndarray, "points 2"], size: Int64[np.ndarray, "2"]) -> Bool[np.ndarray, "points"]:
    """Returns which pixels (x, y; NaN behind the camera) are strictly inside an image of ``size`` (width, height)."""
    with np.errstate(invalid="ignore"):
        return np.all((pixels > 0) & (pixels < size), axis=1)


def image_pixels(index: FrameIndex, image: int, sweep: Sweep) -> Float64[np.ndarray, "points 2"]:
    """Returns the pixels (x, y) of every point in the image of row ``image``; NaN behind the camera."""
    images = index.images
    return project(sweep.points, images.camera_from_lidar[image], images.intrinsics[image])[0]

"""Rigid transforms and quaternions, in the conventions of the nuScenes tables.

Ego frame: x forward, y left, z up. Camera frame: x right, y down, z forward. LiDAR frame: x right, y forward, z up. A
matrix named ``a_from_b`` maps homogeneous points of frame b to frame a; metres and radians throughout.
"""

import numpy as np
from jaxtyping import Float64

__all__ = ["EGO_FROM_CAMERA", "EGO_FROM_LIDAR", "quaternion", "rigid", "rotation"]

EGO_FROM_CAMERA: Float64[np.ndarray, "3 3"] = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Axes of a camera that looks forward."""

EGO_FROM_LIDAR: Float64[np.ndarray, "3 3"] = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""Axes of an upright LiDAR that faces forward."""


def rotation(*, yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Float64[np.ndarray, "3 3"]:
    """Rotates by ``roll`` about x, ``pitch`` about y (positive: nose down), then ``yaw`` about z (anticlockwise)."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    about_z = np.array([[cy, -sy, 0.0], [sy, cy, 0.0], [0.0, 0.0, 1.0]])
    about_y = np.array([[cp, 0.0, sp], [0.0, 1.0, 0.0], [-sp, 0.0, cp]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cr, -sr], [0.0, sr, cr]])
    return about_z @ about_y @ about_x


def rigid(
    matrix: Float64[np.ndarray, "3 3"], translation: tuple[float, float, float] | Float64[np.ndarray, " 3"]
) -> Float64[np.ndarray, "4 4"]:
    """Returns the pose that rotates by ``matrix``, then translates."""
    pose = np.eye(4)
    pose[:3, :3] = matrix
    pose[:3, 3] = translation
    return pose


def quaternion(matrix: Float64[np.ndarray, "3 3"]) -> list[float]:
    """Returns the unit quaternion (w, x, y, z) of a rotation matrix, with w >= 0.

    The quaternion is the eigenvector to the largest eigenvalue of a symmetric 4x4 matrix of the nine entries
    (Bar-Itzhack 2000, "New method for extracting the quaternion from a rotation matrix"); no case is singular.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = matrix
    symmetric = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    vector = np.linalg.eigh(symmetric)[1][:, -1]
    return [float(value) for value in (vector if vector[0] >= 0 else -vector)]

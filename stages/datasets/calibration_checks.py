"""What every calibration must be: a rigid transform, and the intrinsics of a camera that could have taken the image.

A matrix of another convention (for row vectors, scaled, mirrored, of an image before it was resized) projects points to
wrong pixels without any error, so each reader refuses it here.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from .lens import Lens

__all__ = ["check_calibration", "intrinsics_fault", "lens_fault", "pose_fault", "size_fault"]

#: Smaller determinants are rounding errors.
_SINGULAR = 1e-9
#: Largest deviation of R R^T from the identity: three decimals may be off by 0.002.
_ROUNDED = 5e-3
#: Largest value that counts as zero, as a fraction of the focal length; also that of the last row.
_ZERO = 1e-6
#: Focal lengths over the longer side of the image: 157 to 3 degrees of view.
_FOCAL = (0.1, 20.0)
#: Largest ratio of the focal lengths; images may be resized to another aspect ratio.
_ASPECT = 4.0
#: Largest distance of the principal point from the image's centre along both axes in the same direction, as a fraction
#: of the sides: one axis may be cropped, both are off if the intrinsics belong to another resolution.
_OFF_CENTRE = 0.2
#: Largest distance of the principal point from the centre of an image turned by a quarter, as a fraction of its sides.
_TURNED = 0.05
#: Smallest share of a straightened image that a lens leaves.
_SHOWN = 0.1


def check_calibration(
    of: str,
    intrinsics: Float64[np.ndarray, "3 3"],
    camera_from_lidar: Float64[np.ndarray, "4 4"],
    size: tuple[int, int],
    remedy: str,
) -> None:
    """Checks the calibration ``of`` a camera with images of ``size`` (width, height).

    Raises:
        DataError: it is wrong; the message says what, and the ``remedy``.
    """
    if fault := _camera_fault(intrinsics.tobytes(), size):
        raise DataError(f"The calibration of {of} is damaged: its intrinsics {fault}; {remedy}")
    if fault := pose_fault(camera_from_lidar):
        raise DataError(f"The calibration of {of} is damaged: its transform from the LiDAR {fault}; {remedy}")


@lru_cache(maxsize=1024)  # a data set has few cameras and many images
def _camera_fault(intrinsics: bytes, size: tuple[int, int]) -> str | None:
    matrix = np.frombuffer(intrinsics).reshape(3, 3)
    return intrinsics_fault(matrix) or size_fault(matrix, size)


def pose_fault(matrix: Float64[np.ndarray, "4 4"]) -> str | None:
    """Returns why ``matrix`` is no rigid transform, or None: an orthonormal rotation and the last row 0 0 0 1."""
    rotation, last = matrix[:3, :3], matrix[3].tolist()
    if not np.isfinite(matrix).all():
        return f"is not finite and cannot be inverted: {matrix.tolist()}"
    if max(abs(last[0]), abs(last[1]), abs(last[2]), abs(last[3] - 1)) > _ZERO:
        hint = "; it seems to be transposed, for row vectors" if not matrix[:3, 3].any() else ""
        return f"has the last row {_row(last)} instead of 0 0 0 1{hint}"
    product = rotation @ rotation.T
    off = float(np.abs(product - np.eye(3)).max())
    if off > _ROUNDED:
        if not _is_invertible(rotation):
            return f"cannot be inverted: {matrix.tolist()}"
        scale = np.sqrt(np.trace(product) / 3)
        scaled = np.abs(product / scale**2 - np.eye(3)).max() <= _ROUNDED
        return f"is no rotation: {f'it scales by {scale:.4g}' if scaled else f'R R^T differs from 1 by {off:.3g}'}"
    if np.linalg.det(rotation) < 0:
        return "mirrors: the determinant of its rotation is -1, an axis points the other way"
    return None


def intrinsics_fault(matrix: Float64[np.ndarray, "3 3"]) -> str | None:
    """Returns why ``matrix`` is no camera matrix, or None: positive focal lengths, zeros below, last row 0 0 1."""
    if not _is_invertible(matrix):
        never = "" if matrix.any() else ", as of a camera that was never calibrated"
        return f"cannot be inverted: {matrix.tolist()}{never}"
    (focal_x, skew, _), (below, focal_y, _), last = matrix.tolist()
    zero = _ZERO * max(1.0, abs(focal_x))
    if last[:2] != [0, 0] and matrix[0, 2] == matrix[1, 2] == 0:
        return f"seem to be transposed: the principal point must be in the last column, it is in the row {_row(last)}"
    if max(abs(last[0]), abs(last[1]), abs(last[2] - 1)) > _ZERO:
        return f"have the last row {_row(last)} instead of 0 0 1"
    if abs(below) > zero or focal_x <= 0 or focal_y <= 0 or abs(skew) > 0.1 * focal_x:
        return (
            "must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with focal lengths above 0 and next to no skew; they are"
            f" {matrix.tolist()}"
        )
    return None


def size_fault(intrinsics: Float64[np.ndarray, "3 3"], size: tuple[int, int]) -> str | None:
    """Returns why valid ``intrinsics`` cannot belong to images of ``size`` (width, height), or None."""
    width, height = size
    if min(size) <= 0:
        return f"cannot belong to images of {width}x{height} pixels"
    focal_x, focal_y, centre_x, centre_y = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    low, high = (factor * max(size) for factor in _FOCAL)
    image = f"images of {width}x{height} pixels"
    if not (low <= focal_x <= high and low <= focal_y <= high):
        return f"have focal lengths {focal_x:g}, {focal_y:g}, implausible for {image}; all values must be in pixels"
    if not 1 / _ASPECT <= focal_x / focal_y <= _ASPECT:
        return f"have focal lengths {focal_x:g}, {focal_y:g}, which differ too much for {image}"
    off = (centre_x / width - 0.5, centre_y / height - 0.5)
    turned = (centre_x / height - 0.5, centre_y / width - 0.5)
    if max(map(abs, turned)) < _TURNED and max(map(abs, off)) > 2 * _TURNED:
        return (
            f"have the principal point ({centre_x:g}, {centre_y:g}), the centre of images of {height}x{width} pixels,"
            f" and these have {width}x{height}: they were turned by a quarter; turn them back"
        )
    if max(map(abs, off)) > 0.5 or (min(map(abs, off)) > _OFF_CENTRE and off[0] * off[1] > 0):
        return (
            f"have the principal point ({centre_x:g}, {centre_y:g}), implausible for {image}; intrinsics of images that"
            " were resized or cropped must be scaled or moved too"
        )
    return None


@lru_cache(maxsize=1024)
def lens_fault(lens: Lens, size: tuple[int, int]) -> str | None:
    """Returns why ``lens`` cannot have drawn images of ``size`` (width, height), or None."""
    radius, shown = lens.fold(size)
    distortion = f"its distortion {', '.join(f'{value:g}' for value in lens.distortion)}"
    if radius is None:
        blank = (
            f"leaves {1 - shown:.0%} of the straightened image blank: {distortion} is none of such images; correct it"
        )
        return blank if shown < _SHOWN else None
    return (
        f"folds the image: {distortion} turns back at"
        f" {radius:.2f} focal lengths, {np.degrees(np.arctan(radius)):.0f} degrees from the optical axis, within images"
        f" of {size[0]}x{size[1]} pixels; check its model and the order of its coefficients, or calibrate it with the"
        " pattern in the corners of the image too"
    )


def _is_invertible(matrix: Float64[np.ndarray, "size size"]) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.isfinite(matrix).all() and _SINGULAR < abs(np.linalg.det(matrix)) < np.inf)


def _row(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)

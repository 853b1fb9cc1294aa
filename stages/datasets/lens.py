"""Lens distortion of cameras whose images are stored distorted."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, UInt8

__all__ = ["Lens"]

_GRID = 256  #: pixels of the longer side of an image that is looked at

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Lens:
    """The lens of a camera as OpenCV models it; matrices are intrinsics in pixels of equally large images.

    ``kind``: "fisheye" (Kannala-Brandt: k1 to k4), or "pinhole" (k1, k2, p1, p2, then k3, then k4 to k6), which is
    called "telecam" in A2D2.
    """

    kind: Literal["fisheye", "pinhole", "telecam"]
    stored: Matrix  #: intrinsics of the stored, distorted image
    straight: Matrix  #: intrinsics of the undistorted image
    distortion: tuple[float, ...]

    def undistort(self, image: UInt8[np.ndarray, "height width *channels"]) -> UInt8[np.ndarray, "height width *c"]:
        """Returns the undistorted image, a pinhole view with intrinsics ``straight`` (bilinear, black outside)."""
        import cv2

        stored, distortion, straight = map(np.array, (self.stored, self.distortion, self.straight))
        if self.kind == "fisheye":
            return cv2.fisheye.undistortImage(image, stored, D=distortion, Knew=straight).astype(np.uint8)
        return cv2.undistort(image, stored, distCoeffs=distortion, newCameraMatrix=straight).astype(np.uint8)

    def straighten(self, pixels: Float64[np.ndarray, "pixels 2"]) -> Float64[np.ndarray, "pixels 2"]:
        """Returns undistorted coordinates of stored pixels (x, y; integers are pixel centres, as in OpenCV)."""
        import cv2

        stored, distortion, straight = map(np.array, (self.stored, self.distortion, self.straight))
        undistort = cv2.fisheye.undistortPoints if self.kind == "fisheye" else cv2.undistortPoints
        return np.asarray(undistort(pixels[:, None], stored, distortion, P=straight))[:, 0]

    def fold(self, size: tuple[int, int]) -> tuple[float | None, float]:
        """Returns where the distortion model folds back, and how much of the undistorted image it fills.

        ``size``: (width, height) of the undistorted image. The first value is the distance from the optical axis, in
        focal lengths, beyond which pixels farther out are drawn nearer to the centre again, so that parts of the stored
        image appear twice: the coefficients hold for a smaller part of the image. It is None if the model does not
        fold; folds outside the stored image do not count. The second value is the fraction of the undistorted image
        that lies inside the stored one.
        """
        import cv2

        scale = np.diag([_GRID / max(size), _GRID / max(size), 1])
        across, down = (max(2, round(_GRID * side / max(size))) for side in size)
        stored, straight = np.array(self.stored), scale @ np.array(self.straight)
        undistort = cv2.fisheye.initUndistortRectifyMap if self.kind == "fisheye" else cv2.initUndistortRectifyMap
        grid = undistort(stored, np.array(self.distortion), np.eye(3), straight, (across + 1, down + 1), cv2.CV_32FC1)
        with np.errstate(all="ignore"):  # of coefficients that no lens has
            x, y = (np.asarray(pixels, np.float64) for pixels in grid)
            (x_down, x_right), (y_down, y_right) = np.gradient(x), np.gradient(y)
            upright = (x_right * y_down > x_down * y_right) & (x_right + y_down > 0)
        outside = (x < 0) | (x > size[0]) | (y < 0) | (y > size[1])
        rows, columns = np.nonzero(~upright & ~outside)
        shown = 1 - float(outside.mean())
        if not len(rows):
            return None, shown
        rays = np.linalg.inv(straight) @ np.stack([columns, rows, np.ones(len(rows))])
        return float(np.hypot(rays[0], rays[1]).min()), shown

    def to_json(self) -> dict[str, Any]:
        """Returns the lens as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Lens":
        """Returns the lens from the values of ``to_json``.

        Raises:
            KeyError: a value is missing.
            ValueError, TypeError: a matrix is not 3 x 3, or a value is not a number.
        """

        def matrix(rows: Any) -> Matrix:
            first, second, third = ((float(a), float(b), float(c)) for a, b, c in rows)
            return first, second, third

        return cls(
            kind=values["kind"],
            stored=matrix(values["stored"]),
            straight=matrix(values["straight"]),
            distortion=tuple(float(value) for value in values["distortion"]),
        )

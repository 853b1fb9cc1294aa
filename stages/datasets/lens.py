"""Lenses: how a camera whose images are stored as the lens drew them shows the world once they are undistorted."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, UInt8

__all__ = ["Lens"]

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Lens:
    """The lens of a camera as OpenCV models it; matrices are intrinsics in pixels of equally large images.

    ``kind``: "fisheye" (equidistant, 4 coefficients) or "telecam" (radial and tangential, 5 or more).
    """

    kind: Literal["fisheye", "telecam"]
    stored: Matrix  #: intrinsics of the stored, distorted image
    straight: Matrix  #: intrinsics of the undistorted image
    distortion: tuple[float, ...]

    def undistort(self, image: UInt8[np.ndarray, "height width *channels"]) -> UInt8[np.ndarray, "height width *c"]:
        """The image as a pinhole camera with the intrinsics ``straight`` would show it (bilinear, black outside)."""
        import cv2

        stored, straight = np.array(self.stored), np.array(self.straight)
        distortion = np.array(self.distortion)
        if self.kind == "fisheye":
            return cv2.fisheye.undistortImage(image, stored, D=distortion, Knew=straight).astype(np.uint8)
        return cv2.undistort(image, stored, distCoeffs=distortion, newCameraMatrix=straight).astype(np.uint8)

    def straighten(self, pixels: Float64[np.ndarray, "pixels 2"]) -> Float64[np.ndarray, "pixels 2"]:
        """Where OpenCV's pixel coordinates (x, y; whole numbers are centres) of the stored image lie undistorted."""
        import cv2

        stored, straight = np.array(self.stored), np.array(self.straight)
        distortion = np.array(self.distortion)
        if self.kind == "fisheye":
            return np.asarray(cv2.fisheye.undistortPoints(pixels[:, None], stored, D=distortion, P=straight))[:, 0]
        return np.asarray(cv2.undistortPoints(pixels[:, None], stored, distortion, P=straight))[:, 0]

    def to_json(self) -> dict[str, Any]:
        """The lens as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Lens":
        """The lens that ``to_json`` described."""

        def matrix(rows: Any) -> Matrix:
            first, second, third = ((float(a), float(b), float(c)) for a, b, c in rows)
            return first, second, third

        return cls(
            kind=values["kind"],
            stored=matrix(values["stored"]),
            straight=matrix(values["straight"]),
            distortion=tuple(float(value) for value in values["distortion"]),
        )

"""Whether edges of the points lie on edges of the images: finds calibrations that are a degree off.

Points in front of a background (a car's outline, a pole) should lie where the image changes. Their mean edge strength
is compared with that at the same pixels shifted in all directions; the best shift, over several frames, is where the
projection would fit. After Levinson and Thrun, "Automatic Online Calibration of Cameras and Lasers", RSS 2013.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ...progress import track
from .decoding import read_rgb
from .index import FrameIndex
from .projection_check import seen_points
from .readers import READERS
from .sweeps import Sweep

__all__ = ["Alignment", "measure_alignment"]

_WIDTH = 640  #: pixels to which images are scaled
_REACH, _STEP = 32, 2  #: pixels of the largest shift, and between shifts
_FRAMES = 8  #: frames per camera
_FEWEST = 50  #: edge points of an image that is of use
_WINDOW = (3, 9)  #: rows and columns around a point in which its background is looked for: not along the ground
_JUMP, _RELATIVE = 1.0, 0.1  #: metres, and share of a point's depth, by which its background must be farther away
#: Standard score: over some frames of 64 beams, cameras that fit reach 5 to 11 and wrong ones at most 3.6.
_CLEAR = 4.5
_CLOSE = 5.0 / _WIDTH  #: largest best shift of a calibration that fits, as a fraction of the image's width


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The shift of a camera's projection, in pixels of its images (x right, y down), at which edges fit best."""

    camera: str
    shift: tuple[float, float]
    width: int  #: of the images
    score: float  #: standard score of that shift among all

    @property
    def clear(self) -> bool:
        """Whether the images have enough edges to tell."""
        return self.score >= _CLEAR

    def __str__(self) -> str:
        right, down = self.shift
        if not self.clear:
            return (
                f"Camera {self.camera}: too few edges in points and images to compare them; look at the points over the"
                " images (--picture FILE)"
            )
        if self.fits:
            return f"The points of camera {self.camera} fit its images, by their edges"
        sides = [f"{abs(right):.0f} pixels to the {'right' if right > 0 else 'left'}"] if right else []
        sides += [f"{abs(down):.0f} pixels {'down' if down > 0 else 'up'}"] if down else []
        return f"The points of camera {self.camera} would fit its images better {' and '.join(sides)}, by their edges"

    @property
    def fits(self) -> bool:
        """Whether the projection needs no shift."""
        return float(np.hypot(*self.shift)) <= _CLOSE * self.width


def measure_alignment(index: FrameIndex) -> list[Alignment]:
    """Returns the best shift of each camera over some of its frames, with a progress bar; none without edges.

    Raises:
        DataError, MissingDataError: a sweep or an image cannot be read.
    """
    if not index.cameras:
        return []
    count = min(_FRAMES, len(index.frames.key))
    rows = np.linspace(0, len(index.frames.key) - 1, count).round().astype(int).tolist()
    scores: dict[str, list[Float64[np.ndarray, "shifts shifts"]]] = {}
    for row in track(rows, "comparing edges", len(rows), "frame"):
        sweep = READERS[index.dataset].read_sweep(index, row).only_usable()
        for image in index.images_of(row).tolist():
            found = _scores(index, image, sweep)
            if found is not None:
                scores.setdefault(str(index.images.camera[image]), []).append(found)
    widths = {str(camera): int(size[0]) for camera, size in zip(index.images.camera, index.images.size, strict=True)}
    return [_best(camera, maps, widths[camera]) for camera, maps in scores.items()]


def _best(camera: str, maps: Sequence[Float64[np.ndarray, "shifts shifts"]], width: int) -> Alignment:
    total = np.sum(maps, axis=0) / np.sqrt(len(maps))
    down, right = (_STEP * int(shift) - _REACH for shift in np.unravel_index(total.argmax(), total.shape))
    return Alignment(
        camera=camera, shift=(right * width / _WIDTH, down * width / _WIDTH), width=width, score=float(total.max())
    )


def _scores(index: FrameIndex, image: int, sweep: Sweep) -> Float64[np.ndarray, "shifts shifts"] | None:
    """Standard scores of shifts [y, x] by the edges under the points; None if there are too few points or edges."""
    pixels, depth = seen_points(index, image, sweep)
    edges = _edges(index, image)
    height = edges.shape[0]
    points = _foreground((pixels * (_WIDTH / index.images.size[image][0])).astype(np.int64), depth, height)
    x, y = points[((points >= _REACH) & (points < (_WIDTH - _REACH, height - _REACH))).all(axis=1)].T
    if len(x) < _FEWEST:
        return None
    shifts = range(-_REACH, _REACH + 1, _STEP)
    found = np.array([[edges[y + down, x + right].mean() for right in shifts] for down in shifts])
    # Long edges, such as kerbs, look the same along themselves.
    found -= (found.mean(axis=0, keepdims=True) + found.mean(axis=1, keepdims=True)) / 2
    spread = float(found.std())
    return (found - found.mean()) / spread if spread > 0 else None


def _foreground(
    pixels: Int64[np.ndarray, "points 2"], depth: Float64[np.ndarray, "points"], height: int
) -> Int64[np.ndarray, "edges 2"]:
    """The pixels of points that have another point near them in the image, but far behind them."""
    import cv2

    x, y = np.minimum(pixels, [_WIDTH - 1, height - 1]).T
    farthest = np.zeros((height, _WIDTH), np.float32)
    np.maximum.at(farthest, (y, x), depth.astype(np.float32))
    around = cv2.dilate(farthest, np.ones(_WINDOW, np.uint8))
    return pixels[around[y, x] - depth > np.maximum(_JUMP, _RELATIVE * depth)]


def _edges(index: FrameIndex, image: int) -> Float64[np.ndarray, "height width"]:
    """The rank of the gradient at each pixel of the straightened, scaled image, 0 to 255, slightly blurred."""
    import cv2

    grey = np.asarray(read_rgb(index.root / str(index.images.path[image])).convert("L"))
    lens = index.lens_of(image)
    if lens is not None:
        grey = lens.undistort(grey)
    height = max(1, round(_WIDTH * grey.shape[0] / grey.shape[1]))
    small = cv2.resize(grey, (_WIDTH, height), interpolation=cv2.INTER_AREA).astype(np.float64)
    rows, columns = np.gradient(small)
    ranks = cv2.equalizeHist(np.minimum(4 * np.hypot(rows, columns), 255).astype(np.uint8))
    return np.asarray(cv2.GaussianBlur(ranks.astype(np.float64), (0, 0), 1.0))

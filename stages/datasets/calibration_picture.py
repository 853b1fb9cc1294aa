"""A picture of a calibration: the points of a frame over its images, coloured by depth."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ...files import write_bytes
from .decoding import read_rgb
from .index import FrameIndex
from .projection_check import View, seen_points
from .readers import READERS

__all__ = ["draw_views"]

_SCENES = 4  #: rows of the picture
_WIDTH = 960  #: pixels of each image in it
_NEAR, _FAR = 2.0, 60.0  #: metres at which the colours begin and end, on a logarithmic scale
_BAR = 24  #: pixels of the line above each image


def draw_views(index: FrameIndex, views: Sequence[View], path: Path) -> None:
    """Writes a PNG or, by its name, a JPEG picture: a row for each of the first scenes, a column for each camera.

    Points are red near the camera and blue far from it; images are straightened as stage one does.

    Raises:
        DataError, MissingDataError: a sweep or an image cannot be read.
    """
    scenes = list(dict.fromkeys(view.scene for view in views))[:_SCENES]
    rows = [[_tile(index, view) for view in views if view.scene == scene] for scene in scenes]
    height, across = max(len(tile) for row in rows for tile in row), max(map(len, rows))
    canvas = np.zeros((len(rows) * height, across * _WIDTH, 3), np.uint8)
    for down, row in enumerate(rows):
        for right, tile in enumerate(row):
            canvas[down * height :][: len(tile), right * _WIDTH :][:, :_WIDTH] = tile
    content = io.BytesIO()
    Image.fromarray(canvas).save(content, "JPEG" if path.suffix.lower() in {".jpg", ".jpeg"} else "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


def _tile(index: FrameIndex, view: View) -> UInt8[np.ndarray, "height width 3"]:
    import cv2

    stored = np.asarray(read_rgb(index.root / str(index.images.path[view.image])))
    lens = index.lens_of(view.image)
    straight = stored if lens is None else lens.undistort(stored)
    scale = _WIDTH / straight.shape[1]
    image = cv2.resize(straight, (_WIDTH, max(1, round(scale * len(straight)))), interpolation=cv2.INTER_AREA)
    row = int(index.images.frame[view.image])
    sweep = READERS[index.dataset].read_sweep(index, row).only_usable()
    pixels, depth = seen_points(index, view.image, sweep)
    share = np.log(np.clip(depth, _NEAR, _FAR) / _NEAR) / np.log(_FAR / _NEAR)
    palette = cv2.applyColorMap(np.arange(255, -1, -1, dtype=np.uint8), cv2.COLORMAP_TURBO)[:, 0, ::-1]
    colours = palette[(255 * share).astype(int)]
    order = np.argsort(-depth)  # near points over far ones
    x, y = (pixels[order] * scale).astype(int).T
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        image[np.minimum(y + down, len(image) - 1), np.minimum(x + right, _WIDTH - 1)] = colours[order]
    title = np.zeros((_BAR, _WIDTH, 3), np.uint8)
    text = f"{view.scene} {view.camera}: {view.share:.1%} of {view.points} points"
    cv2.putText(title, text, (6, _BAR - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([title, image])

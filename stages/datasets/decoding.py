"""Images as stage one decodes them: 8-bit RGB, whatever is stored."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError
from .checks import UNDECODABLE
from .index import FrameIndex

__all__ = ["read_rgb", "to_rgb", "warn_if_dark"]

log = logging.getLogger(__name__)

_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})

#: Brightest value, of 255, of an image that shows next to nothing; 12 bits in files of 16 go up to 15.
_DARK = 31


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns ``image`` in 8-bit RGB: 16 bits are scaled by 1/257, transparency is dropped.

    Raises:
        ValueError: its pixel type has no fixed range.
    """
    if image.mode in _EIGHT_BITS:
        return image.convert("RGB")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        return Image.fromarray(np.rint(grey / 257.0).astype(np.uint8)).convert("RGB")
    raise ValueError(f"pixel type '{image.mode}' has no fixed range")


def read_rgb(path: Path) -> Image.Image:
    """Returns the image in ``path`` as ``to_rgb`` does.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UNDECODABLE as error:
        raise DataError(
            f"The image {path} cannot be decoded ({error}); copy it again, or delete it and leave its frame out:"
            " xd3d prepare --allow-missing"
        ) from error


def warn_if_dark(index: FrameIndex) -> None:
    """Logs a warning for each camera whose first image is nearly black, as of 10 or 12 bits in files of 16.

    Raises:
        DataError: an image cannot be decoded.
    """
    for camera in index.cameras:
        rows = np.flatnonzero(index.images.camera == camera)
        if not len(rows):
            continue
        path = index.root / str(index.images.path[rows[0]])
        brightest = int(np.asarray(read_rgb(path)).max())
        if brightest <= _DARK:
            log.warning(
                "The image %s of camera %s has no value above %d of 255, and stage one would see next to nothing; if"
                " its files of 16 bits hold 10 or 12, multiply their values by 64 or 16",
                *(path, camera, brightest),
            )

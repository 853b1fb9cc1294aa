"""Images as stage one sees them: decoded, checked against the index, resized; and their padding for the autoencoder.

Resizing is Pillow's bilinear filter, which averages over the source area when it shrinks (antialiased) and rounds to
8 bits, so every machine gets the same bytes. Orientation tags (EXIF) are ignored: calibration refers to stored pixels.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ...errors import DataError
from ..datasets.checks import UNDECODABLE
from ..datasets.lens import Lens
from .settings import Decoding

__all__ = ["IMAGE_METHOD", "RGB_STRIDE", "load_image", "pad_to_multiple", "shrink_to_stride"]

IMAGE_METHOD = "pillow bilinear, pad replicate"  #: goes into the fingerprint
RGB_STRIDE = 4  #: pixels a cell of the ``rgb`` tap spans

EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


def load_image(
    path: Path,
    *,
    image_size: tuple[int, int],
    stored_size: tuple[int, int] | None = None,
    lens: Lens | None = None,
    decoding: Decoding = "full",
) -> UInt8[np.ndarray, "3 height width"]:
    """Decode an image file to RGB and resize it to ``image_size`` (height, width).

    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped. ``stored_size`` (width,
    height) is what the index says of the file; ``lens`` straightens the picture first. With ``decoding`` "scaled" and
    no lens, a JPEG at least twice as large as ``image_size`` is decoded at a half, a quarter or an eighth of its size.

    Raises:
        DataError: the file is missing, truncated, no image, of a pixel type without a range, or of another size.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            found = image.size
            if stored_size in (None, found):  # else it is not worth decoding
                if decoding == "scaled" and lens is None:
                    image.draft("RGB", image_size[::-1])
                image.load()
                picture = _to_rgb(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing; run 'xd3d prepare' to list what is incomplete") from error
    except UNDECODABLE as error:
        raise DataError(f"{path}: cannot be decoded ({error}); copy the file again from its source") from error
    if stored_size not in (None, found):
        sizes = [f"{width}x{height}" for width, height in (found, stored_size)]
        raise DataError(
            f"{path}: is {sizes[0]} pixels, the index says {sizes[1]}; copy it again or rerun 'xd3d prepare'"
        )
    if lens is not None:
        picture = Image.fromarray(lens.undistort(np.asarray(picture)))
    height, width = image_size
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.stack([np.asarray(channel) for channel in resized.split()])


def pad_to_multiple(
    images: Float[Tensor, "batch 3 height width"], multiple: int
) -> Float[Tensor, "batch 3 _padded_height _padded_width"]:
    """Repeat the last row and column downwards and rightwards until both sides are multiples of ``multiple``.

    Repeating the edge adds no contrast of its own, and unlike mirroring it works for any image size.
    """
    height, width = images.shape[-2:]
    return pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def shrink_to_stride(images: UInt8[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch 3 _h _w"]:
    """Average squares of 4x4 pixels (the ``rgb`` tap); cells that hang over the edge average what they cover."""
    means = avg_pool2d(images.to(torch.float32), RGB_STRIDE, ceil_mode=True)
    return means.round_().to(torch.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in EIGHT_BIT_MODES:
        return image.convert("RGB")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        return Image.fromarray(np.rint(grey / 257.0).astype(np.uint8)).convert("RGB")
    raise ValueError(f"pixel type '{image.mode}' has no fixed range")

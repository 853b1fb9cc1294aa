"""The input images of the model: decoding, resizing, padding, views (mirrored, colour-jittered), and reading by row.

Resizing is Pillow's bilinear filter, which averages over the source area when it shrinks (antialiased) and rounds to
8 bits, so every machine gets the same bytes. Orientation tags (EXIF) are ignored: calibration refers to stored pixels.

The jitter is that of torchvision's ``ColorJitter(0.4, 0.4, 0.4, 0.1)`` on 8-bit pictures (as UniDSeg and xMUDA train),
seeded by the image key and the number of the view: every machine gets the same bytes.
"""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ...cache.views import HFLIP, IDENTITY, split_row, view_key
from ...errors import DataError, MissingDataError
from ..datasets.checks import UNDECODABLE
from ..datasets.decoding import to_rgb
from ..datasets.index import FrameIndex
from ..datasets.lens import Lens
from ..datasets.memory import MemoryIndex
from .settings import Decoding, ExtractSettings

__all__ = [
    "FeatureMaps",
    "PictureArray",
    "PictureSource",
    "Pictures",
    "IMAGE_METHOD",
    "RGB_STRIDE",
    "apply_view",
    "load_image",
    "pad_to_multiple",
    "shrink_to_stride",
]

Pictures = UInt8[Tensor, "batch 3 height width"]
PictureArray = UInt8[np.ndarray, "batch 3 height width"]  #: the same on the host
FeatureMaps = Mapping[str, Num[Tensor, "batch _channels _h _w"]]  #: tap -> map

IMAGE_METHOD = "pillow bilinear, pad replicate"  #: goes into the fingerprint
RGB_STRIDE = 4  #: pixels a cell of the ``rgb`` tap spans


STRENGTH, HUE = 0.4, 0.1  #: factors are drawn from 1 -+ 0.4; the hue turns by up to a tenth of the circle
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def load_image(
    path: Path,
    *,
    image_size: tuple[int, int],
    stored_size: tuple[int, int] | None = None,
    lens: Lens | None = None,
    decoding: Decoding = "full",
) -> UInt8[np.ndarray, "3 height width"]:
    """Decodes an image file to RGB and resizes it to ``image_size`` (height, width).

    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped. ``stored_size`` (width,
    height) is the size in the index; ``lens`` undistorts the picture first. With ``decoding`` "scaled" and
    no lens, a JPEG at least twice as large as ``image_size`` is decoded at a half, a quarter or an eighth of its size.

    Raises:
        DataError: the file is missing, truncated, not an image, of an unsupported pixel type, or of another size.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            found = image.size
            if stored_size in (None, found):  # else decoding is pointless
                if decoding == "scaled" and lens is None:
                    image.draft("RGB", image_size[::-1])
                image.load()
                picture = to_rgb(image)
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
    return _resized(picture, image_size)


def _resized(picture: Image.Image, image_size: tuple[int, int]) -> UInt8[np.ndarray, "3 height width"]:
    height, width = image_size
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.stack([np.asarray(channel) for channel in resized.split()])


def pad_to_multiple(
    images: Float[Tensor, "batch 3 height width"], multiple: int
) -> Float[Tensor, "batch 3 _padded_height _padded_width"]:
    """Pads the bottom and the right by edge replication until both sides are multiples of ``multiple``.

    Replication adds no contrast and, unlike reflection, works for any image size.
    """
    height, width = images.shape[-2:]
    return pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def shrink_to_stride(images: Pictures) -> UInt8[Tensor, "batch 3 _h _w"]:
    """Averages blocks of 4x4 pixels (the ``rgb`` tap); blocks at the edge average the pixels inside the image."""
    means = avg_pool2d(images.to(torch.float32), RGB_STRIDE, ceil_mode=True)
    return means.round_().to(torch.uint8)


def apply_view(
    picture: UInt8[np.ndarray, "3 height width"], view: str, key: str
) -> UInt8[np.ndarray, "3 height width"]:
    """Returns ``view`` of the picture of image ``key``."""
    if view == IDENTITY:
        return picture
    if view == HFLIP:
        return picture[:, :, ::-1]
    return _jittered(picture, view_key(key, view))


def _jittered(picture: np.ndarray, key: str) -> np.ndarray:
    """Applies random brightness, contrast, saturation and hue changes in random order."""
    words = np.frombuffer(hashlib.sha256(key.encode()).digest(), np.uint32).tolist()
    rng = np.random.default_rng(words)
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    factors = {name: rng.uniform(1 - STRENGTH, 1 + STRENGTH) for name in ENHANCERS}
    turn = int(256 * rng.uniform(-HUE, HUE))
    for name in rng.permutation([*ENHANCERS, "hue"]):
        image = _turned(image, turn) if name == "hue" else ENHANCERS[name](image).enhance(factors[name])
    return np.asarray(image).transpose(2, 0, 1)


def _turned(image: Image.Image, turn: int) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(turn % 256)
    return Image.frombytes("HSV", image.size, hsv.tobytes()).convert("RGB")


class PictureSource:
    """The pictures of an index at the model's input size, by row: the ``views`` of an image have consecutive rows.

    ``decoding`` is as in ``ExtractSettings``.

    Raises:
        MissingDataError: the data root does not exist.
    """

    def __init__(
        self,
        *,
        index: FrameIndex,
        image_size: tuple[int, int],
        views: Sequence[str] = (IDENTITY,),
        decoding: Decoding = "full",
    ) -> None:
        self.index = index
        self.decoding: Decoding = decoding
        self.image_size = image_size
        self.views = tuple(views)
        if not index.root.is_dir():
            raise MissingDataError(
                f"The data root {index.root} of the index does not exist; mount it, or run 'xd3d prepare --root DIR'"
            )

    @classmethod
    def of(cls, index: FrameIndex, settings: ExtractSettings) -> "PictureSource":
        """Creates the source of the pictures for ``settings``."""
        return cls(index=index, image_size=settings.image_size, views=settings.views, decoding=settings.decoding)

    def __len__(self) -> int:
        return len(self.index.images.key) * len(self.views)

    def keys(self, rows: Sequence[int]) -> list[str]:
        """Returns the keys of ``rows``."""
        places = [split_row(row, self.views) for row in rows]
        return [view_key(str(self.index.images.key[image]), view) for image, view in places]

    def by_image(self, rows: Iterable[int]) -> list[list[int]]:
        """Groups consecutive ``rows`` of the same image, which are read from one file."""
        return [list(group) for _, group in groupby(rows, lambda row: row // len(self.views))]

    def read(self, rows: Sequence[int]) -> tuple[PictureArray, dict[int, str]]:
        """Decodes ``rows``; returns the pictures (failed ones black) and row -> reason of the failed ones."""
        pictures = np.zeros((len(rows), 3, *self.image_size), np.uint8)
        failures: dict[int, str] = {}
        decode = lru_cache(maxsize=1)(self._decode)  # the views of an image are consecutive
        for place, row in enumerate(rows):
            image, view = split_row(int(row), self.views)
            try:
                pictures[place] = apply_view(decode(image), view, str(self.index.images.key[image]))
            except DataError as error:
                failures[int(row)] = str(error)
        return pictures, failures

    def _decode(self, image: int) -> UInt8[np.ndarray, "3 height width"]:
        if isinstance(self.index, MemoryIndex):
            return _resized(Image.fromarray(self.index.pictures[image]), self.image_size)
        width, height = self.index.images.size[image]
        return load_image(
            self.index.root / str(self.index.images.path[image]),
            image_size=self.image_size,
            stored_size=(int(width), int(height)),
            lens=self.index.lens_of(image),
            decoding=self.decoding,
        )

"""Variants of a picture that a cache may hold beside it: mirrored, or with its colours jittered.

The jitter is that of torchvision's ``ColorJitter(0.4, 0.4, 0.4, 0.1)`` on 8-bit pictures (UniDSeg and xMUDA train with
it), drawn from the image's key and the view's number: any machine gets the same bytes.
"""

import hashlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from ...cache.views import HFLIP, IDENTITY, view_key

__all__ = ["apply_view"]

STRENGTH, HUE = 0.4, 0.1  #: factors are drawn from 1 -+ 0.4; the hue turns by up to a tenth of the circle

ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def apply_view(
    picture: UInt8[np.ndarray, "3 height width"], view: str, key: str
) -> UInt8[np.ndarray, "3 height width"]:
    """Return the view of the picture of image ``key``."""
    if view == IDENTITY:
        return picture
    if view == HFLIP:
        return picture[:, :, ::-1]
    return _jittered(picture, view_key(key, view))


def _jittered(picture: np.ndarray, key: str) -> np.ndarray:
    """Change brightness, contrast, saturation and hue by random amounts, in random order."""
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

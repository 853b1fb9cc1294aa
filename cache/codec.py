"""The codec of the profile ``compact``: 8 bits a value, with a scale and an offset for each channel of each image.

A value is ``e4m3(code) * scale + offset``, where e4m3 is the 8-bit float of the OCP specification (FP8, "e4m3fn"):
sign, 4 bits of exponent, 3 of mantissa, no infinity. The offset is the channel's mean, because floats are most
precise near zero and a network reads the distance from the mean. It is zero if the mean is small beside the values, as
a few outliers may dominate it. The scale is a power of two: scaling is exact, and a decoder on any device gives
the same float32. The numbers behind these choices stand in ``docs/compact.md``.
"""

import numpy as np
from jaxtyping import Float16, Float32, UInt8, UInt32

from ..errors import CacheError

__all__ = ["E4M3", "FAR_MEAN", "SMALLEST_EXPONENT", "decode", "encode"]

E4M3_MAX = np.float32(448)
SMALLEST_EXPONENT = -24  #: of a scale: 2 ** -24 is the smallest float16
FAR_MEAN = 1 / 2  #: of the root mean square of a channel; a mean beyond it is taken off
SUBNORMAL = 2.0**-6  #: e4m3 below this lies on a grid of 2 ** -9


def _e4m3_values() -> Float32[np.ndarray, "256"]:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
    values[codes & 127 == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


E4M3: Float32[np.ndarray, "256"] = _e4m3_values()  #: value of each code; 127 and 255 are NaN and are never written


def encode(
    values: Float16[np.ndarray, "images *row"], channel_axis: int
) -> tuple[UInt8[np.ndarray, "images *row"], Float16[np.ndarray, "images 2 channels"]]:
    """Returns the codes of ``values``, and scale (index 0) and offset (index 1) of each channel of each image.

    The codes of an image depend on that image only; a channel of zeros has scale 0.

    Raises:
        CacheError: a value is NaN or infinite.
    """
    codes = np.empty(values.shape, np.uint8)
    scales = np.empty((len(values), 2, values.shape[channel_axis]), np.float16)
    for index, image in enumerate(values):  # one at a time, to stay in the processor's cache
        by_channel = np.moveaxis(image, channel_axis - 1, 0)
        found = _encode_image(by_channel.reshape(len(by_channel), -1).astype(np.float32, order="C"), scales[index])
        np.moveaxis(codes[index], channel_axis - 1, 0)[:] = found.reshape(by_channel.shape)
    return codes, scales


def decode(
    codes: UInt8[np.ndarray, "images *row"], scales: Float16[np.ndarray, "images 2 channels"], channel_axis: int
) -> Float32[np.ndarray, "images *row"]:
    """Decodes ``codes``; the reference for every faster decoder."""
    spread = [1] * codes.ndim
    spread[0], spread[channel_axis] = scales.shape[0], scales.shape[2]
    scale, offset = (scales[:, index].astype(np.float32).reshape(spread) for index in (0, 1))
    return E4M3[codes] * scale + offset


def _encode_image(
    values: Float32[np.ndarray, "channels cells"], scales: Float16[np.ndarray, "2 channels"]
) -> UInt8[np.ndarray, "channels cells"]:
    """Encodes one image; overwrites ``values`` and fills ``scales``."""
    if not np.isfinite(values).all():
        raise CacheError("Only finite values can be stored in 8 bits; leave the image out and record why it failed")
    mean = values.mean(axis=1, dtype=np.float64)
    power = np.square(values).mean(axis=1, dtype=np.float64)
    scales[1] = np.where(np.square(mean) > FAR_MEAN**2 * power, mean, 0)
    values -= scales[1].astype(np.float32)[:, None]
    largest = np.abs(values).max(axis=1)
    fraction, exponent = np.frexp(largest / E4M3_MAX)
    exponent = np.maximum(exponent - (fraction == 0.5), SMALLEST_EXPONENT)  # 0.5 * 2 ** e is 2 ** (e - 1)
    scales[0] = np.where(largest > 0, np.ldexp(1.0, exponent), 0)
    values *= np.ldexp(np.float32(1), -exponent)[:, None]
    return _nearest_codes(values)


def _nearest_codes(values: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Returns the codes of contiguous ``values`` in [-448, 448], rounded to the nearest, ties to even."""
    bits: UInt32[np.ndarray, "*shape"] = values.view(np.uint32)
    sign = (bits >> 24).astype(np.uint8) & 0x80
    magnitude = bits & 0x7FFFFFFF
    small = np.flatnonzero(magnitude < np.float32(SUBNORMAL).view(np.uint32))
    magnitude += (magnitude >> 20 & 1) + np.uint32(0x7FFFF)  # half a step of 3 bits of mantissa, less 1 on even codes
    magnitude >>= 20
    codes = (magnitude - np.uint32(120 << 3)).astype(np.uint8)  # the exponents' bias is 7, that of float32 127
    codes.reshape(-1)[small] = np.rint(np.abs(values.reshape(-1)[small]) * 512)
    return codes | sign

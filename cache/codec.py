"""The codec of the profile ``compact``: 8 bits a value, with a scale and an offset for each channel of each image.

A value is ``e4m3(code) * scale + offset``, where e4m3 is the 8-bit float of the OCP specification (FP8, "e4m3fn"):
sign, 4 bits of exponent, 3 of mantissa, no infinity. The offset is the channel's mean, because floats are most
precise near zero and a network reads the distance from the mean. It is zero if the mean is small beside the values, as
a few outliers may dominate it. The scale is a power of two: scaling is exact, and a decoder on any device gives
the same float32. The numbers behind these choices stand in ``docs/compact.md``.
"""

import numpy as np
from jaxtyping import Float16, Float32, UInt8

__all__ = ["E4M3", "FAR_MEAN", "SMALLEST_EXPONENT", "decode"]

SMALLEST_EXPONENT = -24  #: of a scale: 2 ** -24 is the smallest float16
FAR_MEAN = 1 / 2  #: of the root mean square of a channel; a mean beyond it is taken off


def _e4m3_values() -> Float32[np.ndarray, "256"]:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
    values[codes & 127 == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


E4M3: Float32[np.ndarray, "256"] = _e4m3_values()  #: value of each code; 127 and 255 are NaN and are never written


def decode(
    codes: UInt8[np.ndarray, "images *row"], scales: Float16[np.ndarray, "images 2 channels"], channel_axis: int
) -> Float32[np.ndarray, "images *row"]:
    """Decodes ``codes``; the reference for every faster decoder."""
    spread = [1] * codes.ndim
    spread[0], spread[channel_axis] = scales.shape[0], scales.shape[2]
    scale, offset = (scales[:, index].astype(np.float32).reshape(spread) for index in (0, 1))
    return E4M3[codes] * scale + offset

"""The encoding of a cache in numpy: the reference for that on the device, and what the tests write caches with."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float16, Float32, UInt8, UInt32
from xd3d.cache.codec import FAR_MEAN, SMALLEST_EXPONENT
from xd3d.cache.commits import Commit
from xd3d.cache.layout import CacheLayout, Shard
from xd3d.cache.schema import CHANNEL_AXES, GEOMETRY, MEMBERSHIPS, SCALES, ImageFeatures, named_arrays
from xd3d.cache.stored import StoredRows
from xd3d.cache.writer import CacheWriter

E4M3_MAX = np.float32(448)
SUBNORMAL = 2.0**-6  #: e4m3 below this lies on a grid of 2 ** -9
FLOAT16_MAX = float(np.finfo(np.float16).max)


def write_shard(writer: CacheWriter, shard: Shard, features: ImageFeatures, failures: Mapping[int, str]) -> Commit:
    """Encodes the features of a shard, one row for each image, and commits them; rows with NaN count as failed."""
    arrays = arrays_of(features, writer.layout)
    failed = {**non_finite_rows(arrays, shard), **failures}
    sound = {
        name: np.stack([np.zeros_like(image) if row in failed else image for row, image in zip(shard.rows, values)])  # noqa: B905 - a wrong batch is the writer's to refuse
        for name, values in arrays.items()
    }
    clamped = {
        name: {row: int((np.abs(image) > FLOAT16_MAX).sum()) for row, image in zip(shard.rows, values, strict=False)}
        for name, values in sound.items()
        if values.dtype == np.float32 and name != GEOMETRY
    }
    some = {name: {row: count for row, count in counts.items() if count} for name, counts in clamped.items()}
    rows = StoredRows(rows=shard.rows, arrays=encoded(sound, writer.layout), clamped=some, failed=failed)
    return writer.write_rows(shard, rows)


def non_finite_rows(arrays: Mapping[str, np.ndarray], shard: Shard) -> dict[int, str]:
    """Row -> reason of rows with NaN or infinity."""
    floating = {name: values for name, values in arrays.items() if values.dtype.kind == "f"}
    return {
        row: f"{name} is not finite"
        for name, values in floating.items()
        for row, image in zip(shard.rows, values, strict=False)
        if not np.isfinite(image).all()
    }


def arrays_of(features: ImageFeatures, layout: CacheLayout) -> dict[str, np.ndarray]:
    """The arrays of ``features`` by their names in the cache; format 1 drops memberships."""
    found = named_arrays(features)
    return {name: values for name, values in found.items() if layout.grid is not None or name not in MEMBERSHIPS}


def encoded(arrays: Mapping[str, np.ndarray], layout: CacheLayout) -> dict[str, np.ndarray]:
    """The stored arrays of computed ones."""
    stored: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        rows = as_stored(values, layout.computed[name].dtype) if name in layout.computed else values
        if f"{SCALES}{name}" in layout.arrays:
            stored[name], stored[SCALES + name] = encode(rows, CHANNEL_AXES[name.partition("/")[0]])
        else:
            stored[name] = rows
    return stored


def as_stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Finite ``values`` in ``dtype``, clamped to the range of float16."""
    if dtype == np.float16 and values.dtype != np.float16:
        values = np.clip(values, -FLOAT16_MAX, FLOAT16_MAX)
    return np.ascontiguousarray(values, dtype=dtype)


def encode(
    values: Float16[np.ndarray, "images *row"], channel_axis: int
) -> tuple[UInt8[np.ndarray, "images *row"], Float16[np.ndarray, "images 2 channels"]]:
    """Returns the codes of ``values``, and scale (index 0) and offset (index 1) of each channel of each image.

    The codes of an image depend on that image only; a channel of zeros has scale 0.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    codes = np.empty(values.shape, np.uint8)
    scales = np.empty((len(values), 2, values.shape[channel_axis]), np.float16)
    for index, image in enumerate(values):  # one at a time, to stay in the processor's cache
        by_channel = np.moveaxis(image, channel_axis - 1, 0)
        found = _encode_image(by_channel.reshape(len(by_channel), -1).astype(np.float32, order="C"), scales[index])
        np.moveaxis(codes[index], channel_axis - 1, 0)[:] = found.reshape(by_channel.shape)
    return codes, scales


def _encode_image(
    values: Float32[np.ndarray, "channels cells"], scales: Float16[np.ndarray, "2 channels"]
) -> UInt8[np.ndarray, "channels cells"]:
    """Encodes one image; overwrites ``values`` and fills ``scales``."""
    if not np.isfinite(values).all():
        raise ValueError("Only finite values can be stored in 8 bits; leave the image out and record why it failed")
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

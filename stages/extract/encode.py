"""Features as the cache stores them, made on the model's device: float16, or the codes of the profile ``compact``.

What is copied to the host is then as small as what is stored, and nothing is left to do there. An image with NaN or
infinity is found here, and values beyond float16 are clamped and counted.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Num, UInt8
from torch import Tensor

from ...cache.layout import ASSIGNMENT, GEOMETRY, SCALES
from ...cache.schema import CHANNEL_AXES
from ...cache.stored import StoredRows
from .memberships import as_indices

__all__ = ["encode_e4m3", "stored_rows"]

FLOAT16_MAX = torch.finfo(torch.float16).max
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
SMALLEST_EXPONENT = -24  #: of a scale, as in the cache's codec
FAR_MEAN = 1 / 2  #: of the root mean square of a channel, as in the cache's codec
EXPONENT_BIAS, MANTISSA_BITS = 127, 23  #: of float32


class Faults(NamedTuple):
    """Why images cannot be stored, by place in the batch, and clamped values by array and place."""

    failed: dict[int, str]
    clamped: dict[str, dict[int, int]]


def stored_rows(features: Mapping[str, Num[Tensor, "batch *row"]], profile: str) -> StoredRows:
    """Encode a batch on its device and copy it to the host; rows are numbered by their place in the batch.

    ``features`` has the arrays that stage one computes, by their names in the cache: floating ones in float32.
    """
    floating = {name: values for name, values in features.items() if values.is_floating_point()}
    largest = torch.stack([values.flatten(1).abs().amax(dim=1) for values in floating.values()])
    encoded: dict[str, Tensor] = {}
    for name, values in features.items():
        if name not in floating or name == GEOMETRY:
            encoded[name] = values
        elif profile == "compact":
            encoded[name], encoded[SCALES + name] = encode_e4m3(_float16(values), CHANNEL_AXES[name.partition("/")[0]])
        else:
            encoded[name] = _float16(values)
    # Copies from a GPU go to pinned memory, all under way at once.
    host = {name: values.to("cpu", non_blocking=True) for name, values in encoded.items()}
    bounds = largest.to("cpu", non_blocking=True)
    if largest.is_cuda:
        torch.cuda.synchronize(largest.device)
    faults = _faults(floating, bounds)
    return StoredRows(
        rows=range(bounds.shape[1]),
        arrays={name: as_indices(values) if name == ASSIGNMENT else values.numpy() for name, values in host.items()},
        clamped=faults.clamped,
        failed=faults.failed,
    )


def encode_e4m3(
    values: Float16[Tensor, "images *row"], channel_axis: int
) -> tuple[UInt8[Tensor, "images *row"], Float16[Tensor, "images 2 channels"]]:
    """Encode as ``cache.codec.encode`` does, on the device of ``values``; images with NaN or infinity get any codes.

    Returns the codes, and scale (first) and offset (second) of each channel of each image.
    """
    rest = values.to(torch.float32)
    axes = [axis for axis in range(1, rest.ndim) if axis != channel_axis]
    cells = rest[0].numel() // rest.shape[channel_axis]
    mean = rest.sum(axes, keepdim=True, dtype=torch.float64) / cells
    power = rest.square().sum(axes, keepdim=True, dtype=torch.float64) / cells
    offset = torch.where(mean.square() > FAR_MEAN**2 * power, mean, 0.0).to(torch.float16)
    rest -= offset
    largest = rest.abs().amax(axes, keepdim=True)
    fraction, exponent = torch.frexp(largest / E4M3_MAX)
    exponent = (exponent - (fraction == 0.5).to(torch.int32)).clamp_min(SMALLEST_EXPONENT)  # 0.5 * 2^e is 2^(e - 1)
    rest *= _power_of_two(-exponent)
    scale = torch.where(largest > 0, _power_of_two(exponent), 0.0).to(torch.float16)
    codes = rest.to(torch.float8_e4m3fn).view(torch.uint8)
    return codes, torch.stack([scale.flatten(1), offset.flatten(1)], dim=1)


def _power_of_two(exponent: Tensor) -> Float[Tensor, "..."]:
    """2 to the power of int32 ``exponent`` between -126 and 127, exactly, on every device."""
    return (exponent + EXPONENT_BIAS << MANTISSA_BITS).view(torch.float32)


def _float16(values: Float[Tensor, "..."]) -> Float16[Tensor, "..."]:
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)


def _faults(features: Mapping[str, Float[Tensor, "batch *row"]], largest: Float[Tensor, "arrays batch"]) -> Faults:
    """Look closely at what the largest magnitude of an array and image says is not in order."""
    faults = Faults({}, {})
    for (name, values), bounds in zip(features.items(), largest.tolist(), strict=True):
        for place, bound in enumerate(bounds):
            if not np.isfinite(bound):
                faults.failed.setdefault(place, f"{name} is not finite: {_where_not_finite(values[place])}")
            elif bound > FLOAT16_MAX and name != GEOMETRY:
                count = int((values[place].abs() > FLOAT16_MAX).sum())
                faults.clamped.setdefault(name, {})[place] = count
    for counts in faults.clamped.values():
        for place in faults.failed:
            counts.pop(place, None)
    return faults


def _where_not_finite(values: Float[Tensor, "*row"]) -> str:
    wrong = (~torch.isfinite(values)).cpu().numpy()
    first: Sequence[int] = [int(place) for place in np.unravel_index(int(wrong.argmax()), wrong.shape)]
    return f"{int(wrong.sum())} values, the first at {list(first)}"

"""Encodes features on the model's device as the cache stores them: float16, or 8-bit codes (profile ``compact``).

Only encoded values are copied to the host. Images with NaN or infinity are detected here, and values beyond the range
of float16 are clamped and counted. Of the memberships, the strongest few of each cell are stored in 8 bits.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Int16, Num, UInt8, UInt16
from torch import Tensor
from torch.nn.functional import pad

from ...cache.codec import FAR_MEAN, SMALLEST_EXPONENT, decode
from ...cache.schema import ASSIGNMENT, CHANNEL_AXES, GEOMETRY, MEMBERSHIPS_PER_CELL, SCALES, ImageFeatures
from ...cache.stored import StoredRows

__all__ = ["as_indices", "round_trip", "decoded", "encode_e4m3", "stored_rows", "strongest_memberships"]

FLOAT16_MAX = torch.finfo(torch.float16).max
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
EXPONENT_BIAS, MANTISSA_BITS = 127, 23  #: of float32


def stored_rows(features: Mapping[str, Num[Tensor, "batch *row"]], profile: str) -> StoredRows:
    """Encodes a batch on its device and copies it to the host; rows are numbered by batch index.

    ``features``: the computed arrays by their names in the cache; floating-point arrays are float32.
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
    # Copies from a GPU go to pinned memory, all asynchronously.
    host = {name: values.to("cpu", non_blocking=True) for name, values in encoded.items()}
    bounds = largest.to("cpu", non_blocking=True)
    if largest.is_cuda:
        torch.cuda.synchronize(largest.device)
    failed, clamped = _faults(floating, bounds)
    return StoredRows(
        rows=range(bounds.shape[1]),
        arrays={name: as_indices(values) if name == ASSIGNMENT else values.numpy() for name, values in host.items()},
        clamped=clamped,
        failed=failed,
    )


def round_trip(values: Float[Tensor, "images *row"], profile: str, channel_axis: int) -> Float[Tensor, "images *row"]:
    """Returns ``values`` after encoding and decoding as in a cache of ``profile``: float32, on the same device."""
    halves = _float16(values)
    if profile != "compact":
        return halves.to(torch.float32)
    codes, scales = encode_e4m3(halves, channel_axis)
    spread = [len(values), *(scales.shape[2] if axis == channel_axis else 1 for axis in range(1, values.ndim))]
    scale, offset = scales.to(torch.float32).unbind(1)
    return codes.view(torch.float8_e4m3fn).to(torch.float32) * scale.view(spread) + offset.view(spread)


def decoded(
    features: ImageFeatures, folder: Literal["features", "agents"], tap: str, device: torch.device
) -> Float[Tensor, "images *row"]:
    """Returns the stored maps or agents of a tap in float32 on ``device``."""
    values = (features.maps if folder == "features" else features.agents)[tap]
    scales = features.scales.get(f"{folder}/{tap}")
    exact = values if scales is None else decode(values, scales, CHANNEL_AXES[folder])
    return torch.from_numpy(exact).to(device, torch.float32)


def encode_e4m3(
    values: Float16[Tensor, "images *row"], channel_axis: int
) -> tuple[UInt8[Tensor, "images *row"], Float16[Tensor, "images 2 channels"]]:
    """Encodes for ``cache.codec.decode``, on the device of ``values``; NaN and infinity give undefined codes.

    Returns the codes, and scale (index 0) and offset (index 1) of each channel of each image.
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
    """Returns 2 to the power of int32 ``exponent`` in -126..127, exact on every device."""
    return (exponent + EXPONENT_BIAS << MANTISSA_BITS).view(torch.float32)


def _float16(values: Float[Tensor, "..."]) -> Float16[Tensor, "..."]:
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)


def _faults(
    features: Mapping[str, Float[Tensor, "batch *row"]], largest: Float[Tensor, "arrays batch"]
) -> tuple[dict[int, str], dict[str, dict[int, int]]]:
    """Returns batch index -> reason of failed images, and array -> batch index -> number of clamped values.

    ``largest``: the largest magnitude in each image of each array.
    """
    failed: dict[int, str] = {}
    clamped: dict[str, dict[int, int]] = {}
    for (name, values), bounds in zip(features.items(), largest.tolist(), strict=True):
        for image, bound in enumerate(bounds):
            if not np.isfinite(bound):
                failed.setdefault(image, f"{name} is not finite: {_where_not_finite(values[image])}")
            elif bound > FLOAT16_MAX and name != GEOMETRY:
                clamped.setdefault(name, {})[image] = int((values[image].abs() > FLOAT16_MAX).sum())
    for counts in clamped.values():
        for image in failed:
            counts.pop(image, None)
    return failed, clamped


def _where_not_finite(values: Float[Tensor, "*row"]) -> str:
    wrong = (~torch.isfinite(values)).cpu().numpy()
    first = [int(index) for index in np.unravel_index(int(wrong.argmax()), wrong.shape)]
    return f"{int(wrong.sum())} values, the first at {first}"


def strongest_memberships(
    assignment: Float[Tensor, "batch agents height width"],
) -> tuple[
    UInt8[Tensor, "batch 4 height width"] | Int16[Tensor, "batch 4 height width"], UInt8[Tensor, "batch 4 height width"]
]:
    """Returns indices and weights (255ths) of the largest memberships of each cell, in descending order.

    Ties are broken by the lower index, on every device. With too few agents, the rest has index 0 and weight 0. Indices
    are int16 with more than 256 agents.
    """
    left, kept = assignment.clone(), min(MEMBERSHIPS_PER_CELL, assignment.shape[1])
    indices, weights = [], []
    for _ in range(kept):  # topk and sort do not define the order of ties; max does
        weight, index = left.max(dim=1, keepdim=True)
        left.scatter_(1, index, -1.0)
        indices.append(index)
        weights.append(weight)
    missing = (0, 0, 0, 0, 0, MEMBERSHIPS_PER_CELL - kept)
    index = pad(torch.cat(indices, dim=1), missing).to(torch.uint8 if assignment.shape[1] <= 256 else torch.int16)
    return index, pad(torch.cat(weights, dim=1), missing).mul_(255).round_().nan_to_num_().to(torch.uint8)


def as_indices(
    assignment: UInt8[Tensor, "batch 4 height width"] | Int16[Tensor, "batch 4 height width"],
) -> UInt8[np.ndarray, "batch 4 height width"] | UInt16[np.ndarray, "batch 4 height width"]:
    """Returns indices on the host as unsigned integers; torch has no arithmetic for unsigned types beyond 8 bits."""
    values = assignment.numpy()
    return values if values.dtype == np.uint8 else values.view(np.uint16)

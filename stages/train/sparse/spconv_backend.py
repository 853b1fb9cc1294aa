"""Sparse convolution with spconv: the fast backend on CUDA, and a cross-check on the CPU.

Inputs for which spconv would be silently wrong are rejected or corrected here: bfloat16, indices that are not
contiguous int32, odd extents, whose last plane a stride of 2 drops, and on the CPU spaces of 2^31 cells or more: its
CPU code uses 32-bit voxel keys (spconv 2.3.8, ``SparseConvIndicesCPU``), which collide there; CUDA uses 64 bits.
In float16 its kernels read eight channels at a time; with fewer, as in a stem, it may find no kernel ("can't find
suitable algorithm", traveller59/spconv issues 455 and 563), so these layers compute in float32.
"""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from ....errors import BackendError
from .maps import Shape
from .tensor import SparseTensor

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its build tools use locale.getdefaultlocale
        import spconv.pytorch as spconv
        from spconv.core import ConvAlgo
except ImportError as error:
    raise BackendError(
        f"spconv is installed but does not import ({error}); reinstall spconv-cu118, or set model.backend=torch"
    ) from error

__all__ = ["SpconvBackend"]

HALF_CHANNELS = 8  #: float16 values in one access of 16 bytes
_TYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float16)}


class SpconvBackend:
    """float32 or float16 on CUDA, float32 or float64 on the CPU; see ``Backend``."""

    name = "spconv"

    def __init__(self) -> None:
        self._layers: dict[tuple[Any, ...], Any] = {}

    def submanifold(self, x: SparseTensor, weight: Float[Tensor, "out k k k in"]) -> SparseTensor:
        """See ``Backend.submanifold``; float16 of fewer than eight input channels is computed in float32."""
        if x.features.dtype == torch.float16 and weight.shape[-1] < HALF_CHANNELS:
            return self.submanifold(x.map(Tensor.float), weight.float()).map(Tensor.half)
        key = f"submanifold{weight.shape[1]}.{x.level}"
        y = self._apply(spconv.SubMConv3d, x, _even(x.spatial_shape), weight, key)
        _pairs(x).update(y.indice_dict)
        return x.replace(y.features)

    def down(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """See ``Backend.down``.

        spconv computes these pairs again for each call, possibly in another voxel order, so they are stored only in the
        maps of the result: a cloud can be encoded twice.
        """
        y = self._apply(spconv.SparseConv3d, x, _even(x.spatial_shape), weight, f"strided.{x.level}")
        maps = x.maps.with_entry("spconv pairs", 0, 0, y.indice_dict)
        return SparseTensor(
            features=y.features,
            indices=y.indices,
            spatial_shape=tuple(y.spatial_shape),
            batch_size=x.batch_size,
            maps=maps.with_entry("spconv finer", x.level, 2, (x.indices, x.spatial_shape)),
            level=x.level + 1,
        )

    def inverse(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """See ``Backend.inverse``."""
        indices, spatial_shape = x.maps.entry_of_down("spconv finer", x.level)
        y = self._apply(spconv.SparseInverseConv3d, x, x.spatial_shape, weight, f"strided.{x.level - 1}")
        return replace(x, features=y.features, indices=indices, spatial_shape=spatial_shape, level=x.level - 1)

    def _apply(self, kind: Any, x: SparseTensor, spatial_shape: Shape, weight: Tensor, key: str) -> Any:
        """Runs one of spconv's layers with ``weight``; it stores its pairs under ``key``."""
        _check_type(x.features)
        _check_volume(x, spatial_shape)
        tensor = spconv.SparseConvTensor(
            x.features.contiguous(), x.indices.contiguous(), list(spatial_shape), x.batch_size, indice_dict=_pairs(x)
        )
        layer = self._layer(kind, weight.shape, key, x.features.device.type)
        return functional_call(layer, {"weight": weight.contiguous()}, (tensor,))

    def _layer(self, kind: Any, shape: torch.Size, key: str, device: str) -> Any:
        """Returns a layer of spconv without weight data (on the meta device), cached by shape and key."""
        name = (kind, *shape, key, device)
        if name not in self._layers:
            edge = {} if kind is spconv.SparseInverseConv3d else {"stride": 2 if kind is spconv.SparseConv3d else 1}
            algo = ConvAlgo.Native if device == "cpu" else None
            with torch.device("meta"):
                self._layers[name] = kind(shape[-1], shape[0], shape[1], bias=False, indice_key=key, algo=algo, **edge)
        return self._layers[name]


def _pairs(x: SparseTensor) -> dict[str, Any]:
    """Returns the pairs that spconv stores for these voxels, by key."""
    return x.maps.entry("spconv pairs", 0, 0, dict)


def _check_type(features: Tensor) -> None:
    allowed = _TYPES.get(features.device.type, ())
    if features.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed) or "nothing"
        raise BackendError(
            f"spconv computes {names} on {features.device.type}, found {str(features.dtype).removeprefix('torch.')}; "
            "change the type, or set model.backend=torch"
        )


def _check_volume(x: SparseTensor, spatial_shape: Shape) -> None:
    cells = x.batch_size * math.prod(spatial_shape)
    if x.features.device.type == "cpu" and cells >= 2**31:
        raise BackendError(
            f"A batch of {x.batch_size} in {spatial_shape} has {cells} cells; on the CPU spconv has 32-bit voxel "
            f"keys, which collide from {2**31} on; set model.backend=torch"
        )


def _even(shape: Shape) -> Shape:
    """Pads odd extents by one empty plane: spconv's stride of 2 would drop the last one."""
    x, y, z = (extent + extent % 2 for extent in shape)
    return x, y, z

"""The three convolutions of a sparse U-Net; weights have spconv's KRSC layout with every backend.

None has a bias: a BatchNorm follows each. A 1 x 1 x 1 convolution is ``torch.nn.Linear`` through ``SparseTensor.map``.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....errors import BackendError
from .backend import Backend
from .tensor import SparseTensor

__all__ = ["DownConv3d", "InverseConv3d", "SubMConv3d"]


class _SparseConv3d(nn.Module):
    """A weight [out, k, k, k, in] and the backend that applies it."""

    def __init__(self, *, in_channels: int, out_channels: int, kernel: int = 2, backend: Backend) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise BackendError(f"A convolution needs channels, found {in_channels} in and {out_channels} out")
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, kernel, kernel, in_channels))
        nn.init.trunc_normal_(self.weight, std=0.02)  # as Pointcept's SpUNet-v1m1 initialises

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolves [N, in] to [M, out]; under autocast in float16 or float32, never in bfloat16.

        spconv does not support bfloat16, and its precision is low for sums over 27 cells and more.

        Raises:
            BackendError: ``x`` has another number of channels.
        """
        if x.features.shape[1] != self.weight.shape[-1]:
            raise BackendError(
                f"A convolution of {self.weight.shape[-1]} input channels was given {x.features.shape[1]}"
            )
        device = x.features.device.type
        if not torch.is_autocast_enabled(device):
            return self.convolve(x, self.weight.to(x.features.dtype))
        half = torch.get_autocast_dtype(device) == torch.float16
        dtype = torch.float16 if half else torch.float32
        with torch.autocast(device, enabled=False):  # otherwise spconv would cast everything to float16
            return self.convolve(x.replace(x.features.to(dtype)), self.weight.to(dtype))

    def convolve(self, x: SparseTensor, weight: Float[Tensor, "out k k k in"]) -> SparseTensor:
        """Calls the backend for this kind of convolution."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Widths, kernel and backend, for ``print(model)``."""
        out_channels, kernel, _, _, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel={kernel}, backend={self.backend.name}"


class SubMConv3d(_SparseConv3d):
    """Submanifold convolution: output on the input's voxels, summed over existing neighbours.

    Raises:
        BackendError: ``kernel`` is even or below 3, or there are no channels.
    """

    def __init__(self, *, in_channels: int, out_channels: int, kernel: int = 3, backend: Backend) -> None:
        if kernel < 3 or kernel % 2 == 0:
            raise BackendError(f"A submanifold kernel is odd and at least 3, found {kernel}; use Linear for 1")
        super().__init__(in_channels=in_channels, out_channels=out_channels, kernel=kernel, backend=backend)

    def convolve(self, x: SparseTensor, weight: Float[Tensor, "out k k k in"]) -> SparseTensor:
        """Maps [N, in] to [N, out] on the same voxels."""
        return self.backend.submanifold(x, weight)


class DownConv3d(_SparseConv3d):
    """Convolution with kernel 2 and stride 2: one output voxel for each 2 x 2 x 2 block with an input voxel.

    Raises:
        BackendError: there are no channels.
    """

    def convolve(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """Maps [N, in] to [M, out] on the voxels of the next level."""
        return self.backend.down(x, weight)


class InverseConv3d(_SparseConv3d):
    """Inverse of ``DownConv3d``: each voxel of the finer level reads the coarse voxel that contains it.

    Raises:
        BackendError: there are no channels.
    """

    def convolve(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """Maps [M, in] to [N, out] on the input voxels of the matching ``DownConv3d``, in their order.

        Raises:
            BackendError: no ``DownConv3d`` was applied to the finer voxels.
        """
        return self.backend.inverse(x, weight)

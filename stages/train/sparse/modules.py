"""The three convolutions of a sparse U-Net; weights lie in spconv's KRSC layout whatever backend computes.

None has a bias: a BatchNorm follows each. A 1 x 1 x 1 convolution is ``torch.nn.Linear`` through ``SparseTensor.map``.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm as batch_norm_function

from ....errors import BackendError
from .backend import Backend
from .tensor import SparseTensor

__all__ = ["DownConv3d", "InverseConv3d", "SubMConv3d", "batch_norm"]


class _SparseConv3d(nn.Module):
    """A weight [out, k, k, k, in] and the backend that applies it."""

    def __init__(self, *, in_channels: int, out_channels: int, kernel: int, backend: Backend) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise BackendError(f"A convolution needs channels, found {in_channels} in and {out_channels} out")
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, kernel, kernel, in_channels))
        nn.init.trunc_normal_(self.weight, std=0.02)  # as Pointcept's SpUNet-v1m1 initialises

    def checked_weight(self, x: SparseTensor) -> Float[Tensor, "out k k k in"]:
        """The weight in the type of the features, once their width is known to fit."""
        if x.features.shape[1] != self.weight.shape[-1]:
            raise BackendError(
                f"A convolution of {self.weight.shape[-1]} input channels was given {x.features.shape[1]}"
            )
        return self.weight.to(x.features.dtype)

    def extra_repr(self) -> str:
        """Widths, kernel and backend, for ``print(model)``."""
        out_channels, kernel, _, _, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel={kernel}, backend={self.backend.name}"


class SubMConv3d(_SparseConv3d):
    """Submanifold convolution: output on the input's voxels, sums over the neighbours that exist."""

    def __init__(self, *, in_channels: int, out_channels: int, kernel: int = 3, backend: Backend) -> None:
        if kernel < 3 or kernel % 2 == 0:
            raise BackendError(f"A submanifold kernel is odd and at least 3, found {kernel}; use Linear for 1")
        super().__init__(in_channels=in_channels, out_channels=out_channels, kernel=kernel, backend=backend)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve [N, in] to [N, out] on the same voxels."""
        return self.backend.submanifold(x, self.checked_weight(x))


class DownConv3d(_SparseConv3d):
    """Kernel 2, stride 2: one output voxel for each 2 x 2 x 2 block that holds an input voxel."""

    def __init__(self, *, in_channels: int, out_channels: int, backend: Backend) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, kernel=2, backend=backend)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve [N, in] to [M, out] on the voxels of the next level."""
        return self.backend.down(x, self.checked_weight(x))


class InverseConv3d(_SparseConv3d):
    """The way back of ``DownConv3d``: each voxel of the finer level reads the coarse voxel that holds it."""

    def __init__(self, *, in_channels: int, out_channels: int, backend: Backend) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, kernel=2, backend=backend)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve [M, in] to [N, out] on the voxels that the matching ``DownConv3d`` read, in their order."""
        return self.backend.inverse(x, self.checked_weight(x))


class _VoxelNorm(nn.BatchNorm1d):
    """BatchNorm over voxels; a single one, which has no deviation, is normalised by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return batch_norm_function(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def batch_norm(channels: int) -> nn.BatchNorm1d:
    """BatchNorm over voxels with SpUNet's constants (Pointcept): eps 1e-3, momentum 0.01."""
    return _VoxelNorm(channels, eps=1e-3, momentum=0.01)

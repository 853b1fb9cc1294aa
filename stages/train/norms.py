"""Normalisation of voxel features: BatchNorm over the voxels of all processes, or LayerNorm of each voxel alone.

With SpUNet's momentum of 0.01, the initial running statistics (mean 0, variance 1) decay only over about a thousand
steps. The true variance of the features is far smaller, so a network trained for a few hundred steps would be evaluated
with mostly initial statistics. From scratch, the first batch sets them here, and the averaging window grows with
training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from .parallel import gathered, number_of_processes, total

__all__ = ["Norm", "VoxelNorm", "frozen_statistics", "make_norm", "norm_momentum", "set_norm_momentum"]

Norm = Literal["batch", "layer"]

FINAL = 0.01  # Pointcept's SpUNet-v1m1
WINDOW = 0.1  # the statistics average over this fraction of the micro-batches so far, until FINAL is reached


class VoxelNorm(nn.BatchNorm1d):
    """BatchNorm with SpUNet's constants (Pointcept); in training, statistics are over the voxels of all processes.

    PyTorch's SyncBatchNorm does the same, but only on GPUs. A single voxel, which has no variance, is normalised with
    the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=FINAL)

    def forward(self, voxels: Float[Tensor, "voxels channels"]) -> Float[Tensor, "voxels channels"]:
        """Normalises each channel."""
        if self.training and number_of_processes() > 1:
            return self._over_all_processes(voxels)
        if self.training and len(voxels) == 1:
            return batch_norm(voxels, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(voxels)

    def _over_all_processes(self, voxels: Float[Tensor, "voxels channels"]) -> Float[Tensor, "voxels channels"]:
        values = voxels.float()
        normalised, mean, variance, count = _Normalise.apply(values, self.eps)  # type: ignore[no-untyped-call]
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return (normalised * self.weight + self.bias).to(voxels.dtype)


class _Normalise(torch.autograd.Function):
    """Normalises by mean and deviation over all processes, with one collective per direction."""

    @staticmethod
    def forward(
        ctx: Any, voxels: Float[Tensor, "voxels channels"], eps: float
    ) -> tuple[
        Float[Tensor, "voxels channels"], Float[Tensor, "channels"], Float[Tensor, "channels"], Float[Tensor, ""]
    ]:
        local_mean = voxels.mean(0)
        local_squares = (voxels - local_mean).square().sum(0)
        local_count = torch.full_like(local_mean, len(voxels))
        counts, means, squares = gathered(torch.stack([local_count, local_mean, local_squares])).unbind(1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        normalised = (voxels - mean) * scale
        ctx.save_for_backward(normalised, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        normalised, scale, count = ctx.saved_tensors
        grad = grads[0]
        along, slope = total(torch.stack([grad.sum(0), (grad * normalised).sum(0)])) / count
        return scale * (grad - along - normalised * slope), None


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """Makes the normalisation of voxel features [N, ``channels``]."""
    return VoxelNorm(channels) if kind == "batch" else nn.LayerNorm(channels)


def norm_momentum(micro_batches: int) -> float:
    """Returns the momentum of running statistics after so many ``micro_batches``: 1 at first, 0.01 from 990 on."""
    return max(FINAL, 1 / (1 + WINDOW * micro_batches))


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Makes every BatchNorm of ``network`` normalise with its running statistics without updating them."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d) and module.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def set_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Sets the momentum of every BatchNorm of ``network``."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum

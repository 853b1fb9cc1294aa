"""Test-time adaptation: BatchNorm with the statistics of the frames that are predicted, not those of training.

Li et al., "Revisiting Batch Normalization for Practical Domain Adaptation" (2016), without any training. Weights and
stored statistics are unchanged afterwards. Only the 3D network has BatchNorm; the 2D branch normalises each image
anyway.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ...errors import RunError

__all__ = ["adapted_norms", "batch_norms"]


class _Moments(NamedTuple):
    """Number, mean and (biased) variance of the voxels that one BatchNorm read in one frame."""

    voxels: int
    mean: Float64[Tensor, "channels"]
    variance: Float64[Tensor, "channels"]


def batch_norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    """Returns the BatchNorms of ``network``.

    Raises:
        RunError: it has none.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    if not norms:
        raise RunError("--adapt norm re-estimates the statistics of BatchNorm, and this network has none; leave it out")
    return norms


@contextmanager
def adapted_norms(network: nn.Module, window: int = 1) -> Iterator[None]:
    """Makes every BatchNorm normalise with the voxels of the current frame and of the ``window`` - 1 frames before it.

    For a ``Network`` in evaluation mode that reads one frame at a time. With a ``window`` of 1 a prediction depends on
    its frame alone; with a larger one it depends on the order of the frames. Passes over the points of frames and over
    whole clouds (``Batch.whole``) are counted separately. A single voxel, which has no variance, is normalised with the
    statistics of training.

    Raises:
        RunError: the network has no BatchNorm.
    """
    norms = batch_norms(network)
    trained = {norm: [buffer.clone() for buffer in _statistics(norm)] for norm in norms}
    read: dict[tuple[nn.Module, bool], deque[_Moments]] = defaultdict(lambda: deque(maxlen=window))
    whole = False

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal whole
        whole = inputs[0].whole

    def adapt(norm: nn.BatchNorm1d, inputs: tuple[Any, ...]) -> None:
        voxels = inputs[0].double()
        variance, mean = torch.var_mean(voxels, 0, correction=0)
        frames = read[norm, whole]
        frames.append(_Moments(len(voxels), mean, variance))
        found = _pooled(frames)
        for buffer, value in zip(_statistics(norm), trained[norm] if found.voxels < 2 else found[1:], strict=True):
            buffer.copy_(value)

    handles = [network.register_forward_pre_hook(begin), *(norm.register_forward_pre_hook(adapt) for norm in norms)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, values in trained.items():
            for buffer, value in zip(_statistics(norm), values, strict=True):
                buffer.copy_(value)


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the buffers of mean and variance."""
    return norm.running_mean, norm.running_var  # type: ignore[return-value]


def _pooled(frames: "deque[_Moments]") -> _Moments:
    """Returns the moments of the voxels of all ``frames`` together."""
    voxels = torch.tensor([[frame.voxels] for frame in frames], dtype=torch.float64, device=frames[0].mean.device)
    shares = voxels / voxels.sum()
    means = torch.stack([frame.mean for frame in frames])
    variances = torch.stack([frame.variance for frame in frames])
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return _Moments(sum(frame.voxels for frame in frames), mean, variance)

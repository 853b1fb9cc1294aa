"""The interface between the image's agents and the cloud: 3D queries meet 2D ones, then refine the decoder's voxels.

Query 0 of either set is a sink: attention may rest on it, and nothing is read from it.
"""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .ragged import Ragged
from .standardise import standardised

__all__ = ["QueryInterface", "StageRefiner"]


class QueryInterface(nn.Module):
    """Q3' = Q3 + s f2(softmax(n(Q3) n(Q_a)^T / sqrt(d))[:, 1:] f1(Q_a[1:]) + Q3), s learned from ``scale``.

    n gives a query mean 0 and variance 1. As they are, queries are so small that the attention starts uniform and stays
    so: each 3D query would meet the mean of all agents.
    """

    def __init__(self, *, channels: int, scale: float) -> None:
        super().__init__()
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(
        self,
        queries_3d: Float[Tensor, "samples tokens channels"],
        queries_2d: Float[Tensor, "samples tokens2d channels"],
    ) -> Float[Tensor, "samples tokens channels"]:
        """The 3D queries of each sample after they met its 2D queries."""
        met = self.attention(queries_3d, queries_2d)[..., 1:] @ self.value(queries_2d[:, 1:])
        return queries_3d + self.scale * self.out(met + queries_3d)

    def attention(
        self,
        queries_3d: Float[Tensor, "samples tokens channels"],
        queries_2d: Float[Tensor, "samples tokens2d channels"],
    ) -> Float[Tensor, "samples tokens tokens2d"]:
        """How much each 3D query looks at each 2D query, the sink first; rows sum to 1."""
        return _attend(standardised(queries_3d), standardised(queries_2d))


class StageRefiner(nn.Module):
    """delta(x, Q) = T2(softmax(x K(Q)^T / sqrt(c))[:, 1:] V(Q[1:]) + x) for the voxels x of one decoder stage.

    T2 begins as the identity, so an untrained refiner leaves the U-Net what it is.
    """

    def __init__(self, *, query_channels: int, voxel_channels: int) -> None:
        super().__init__()
        self.key = nn.Linear(query_channels, voxel_channels, bias=False)  # it would shift every logit of a row alike
        self.value = nn.Linear(query_channels, voxel_channels)
        self.out = nn.Linear(voxel_channels, voxel_channels)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        voxels: Float[Tensor, "voxels channels"],
        layout: Ragged,
        queries: Float[Tensor, "samples tokens query_channels"],
        bias: Float[Tensor, "voxels tokens"] | None = None,
    ) -> Float[Tensor, "voxels channels"]:
        """Refined features; ``layout`` says which sample, and so which queries, a voxel belongs to.

        ``bias`` is added to the logits of the attention.
        """
        attention = self.attention(layout.pad(voxels), queries, None if bias is None else layout.pad(bias))
        delta = layout.unpad(attention[..., 1:] @ self.value(queries[:, 1:]))
        return self.out(delta + voxels)

    def attention(
        self,
        voxels: Float[Tensor, "samples longest channels"],
        queries: Float[Tensor, "samples tokens query_channels"],
        bias: Float[Tensor, "samples longest tokens"] | None = None,
    ) -> Float[Tensor, "samples longest tokens"]:
        """How much each voxel looks at each query of its sample, the sink first; rows sum to 1."""
        return _attend(voxels, self.key(queries), bias)


def _attend(
    rows: Float[Tensor, "samples rows channels"],
    keys: Float[Tensor, "samples keys channels"],
    bias: Float[Tensor, "samples rows keys"] | None = None,
) -> Float[Tensor, "samples rows keys"]:
    logits = rows / sqrt(keys.shape[-1]) @ keys.transpose(1, 2)  # in this order float16 does not overflow
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)

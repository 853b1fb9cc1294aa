"""The query interface: 3D queries attend to 2D queries and refine the decoder's voxels; decoupling of the 2D queries.

Query 0 of each set is an attention sink: it may receive attention, and its value is never read. Decoupling pulls the
semantic queries towards a low-rank projection of themselves, which holds no local detail.
"""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import kl_div, layer_norm, log_softmax

from .parallel import total
from .ragged import Ragged

__all__ = ["QueryInterface", "StageRefiner", "decoupling_loss", "low_rank", "standardised"]


class QueryInterface(nn.Module):
    """Q3' = Q3 + s f2(softmax(n(Q3) n(Q_a)^T / sqrt(d))[:, 1:] f1(Q_a[1:]) + Q3), s learned from ``scale``.

    n gives each query mean 0 and variance 1. Without it, queries are so small that the attention starts uniform and
    stays uniform: each 3D query would read the mean of all agents.
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
        """Returns the 3D queries of each sample, refined by its 2D queries."""
        read = self.attention(queries_3d, queries_2d)[..., 1:] @ self.value(queries_2d[:, 1:])
        return queries_3d + self.scale * self.out(read + queries_3d)

    def attention(
        self,
        queries_3d: Float[Tensor, "samples tokens channels"],
        queries_2d: Float[Tensor, "samples tokens2d channels"],
    ) -> Float[Tensor, "samples tokens tokens2d"]:
        """Returns the attention of each 3D query to each 2D query, the sink first; rows sum to 1."""
        return _attend(standardised(queries_3d), standardised(queries_2d))


class StageRefiner(nn.Module):
    """delta(x, Q) = T2(softmax(x K(Q)^T / sqrt(c))[:, 1:] V(Q[1:]) + x) for the voxels x of one decoder stage.

    T2 is initialised as the identity.
    """

    def __init__(self, *, query_channels: int, voxel_channels: int) -> None:
        super().__init__()
        self.key = nn.Linear(query_channels, voxel_channels, bias=False)  # a bias would shift a row's logits equally
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
        """Returns refined features; ``layout`` assigns each voxel to its sample and thereby to its queries.

        ``bias`` is added to the attention logits.
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
        """Returns the attention of each voxel to each query of its sample, the sink first; rows sum to 1."""
        return _attend(voxels, self.key(queries), bias)


def _attend(
    rows: Float[Tensor, "samples rows channels"],
    keys: Float[Tensor, "samples keys channels"],
    bias: Float[Tensor, "samples rows keys"] | None = None,
) -> Float[Tensor, "samples rows keys"]:
    logits = rows / sqrt(keys.shape[-1]) @ keys.transpose(1, 2)  # in this order float16 does not overflow
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)


def standardised(rows: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
    """Returns each row minus its mean over the channels, divided by its standard deviation."""
    return layer_norm(rows, rows.shape[-1:])


RANK_DEFICIENT = 1e-12  #: eigenvalues of Q Q^T (float64) below this fraction of the largest are rounding errors


def low_rank(queries: Float[Tensor, "samples tokens channels"], rank: int) -> Float[Tensor, "samples tokens channels"]:
    """Projects each sample's queries onto their first ``rank`` right singular vectors.

    The projector V_k V_k^T of each [tokens, channels] matrix is treated as a constant: gradients flow only through the
    product with the queries.
    """
    if rank >= min(queries.shape[1:]):
        return queries
    with torch.no_grad():
        directions = _directions(queries.detach().float(), rank).to(queries.dtype)
    return queries @ directions @ directions.transpose(1, 2)


def _directions(queries: Float[Tensor, "samples tokens channels"], rank: int) -> Float[Tensor, "samples channels rank"]:
    """Returns the first right singular vectors, from an eigendecomposition of the smaller of Q Q^T and Q^T Q.

    This is faster than an SVD.
    """
    finite = queries.nan_to_num(0, 0, 0)  # a NaN must reach the loss, whose check names the frames
    scaled = finite / finite.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if scaled.shape[1] >= scaled.shape[2]:
        return torch.linalg.eigh(scaled.transpose(1, 2) @ scaled).eigenvectors[:, :, -rank:]
    scaled = scaled.double()  # V = Q^T U / sigma needs more digits than the eigenvectors of Q^T Q
    values, vectors = torch.linalg.eigh(scaled @ scaled.transpose(1, 2))
    strong = values[:, -rank:] > RANK_DEFICIENT * values[:, -1:]
    sigma = values[:, -rank:].where(strong, 1.0).sqrt()
    directions = scaled.transpose(1, 2) @ vectors[:, :, -rank:] / sigma.unsqueeze(1)
    return (directions * strong.unsqueeze(1)).float()


def decoupling_loss(
    semantic: Float[Tensor, "samples tokens channels"],
    projected: Float[Tensor, "samples tokens channels"],
    *,
    standardise: bool,
) -> Float[Tensor, ""]:
    """KL(softmax(Q_b) || softmax(Q_a)) with Q_b detached, plus KL(softmax(Q_a) || softmax(Q_b)) with Q_a detached.

    The first term is the method's L_dec and trains Q_a. The second trains Q_b to represent Q_a in its few directions;
    without it the tokens of b would get no gradient. Both are means over the queries of all processes. ``standardise``
    gives each query mean 0 and variance 1 first; without it, queries may become so small that every softmax is flat and
    the loss vanishes although nothing is decoupled.
    """
    if standardise:
        semantic, projected = standardised(semantic), standardised(projected)
    a, b = log_softmax(semantic, -1), log_softmax(projected, -1)
    queries = total(semantic.new_tensor(semantic.shape[0] * semantic.shape[1]))
    held_b = kl_div(a, b.detach(), reduction="sum", log_target=True)
    held_a = kl_div(b, a.detach(), reduction="sum", log_target=True)
    return (held_b + held_a) / queries

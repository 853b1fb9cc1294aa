"""Decoupling: the semantic queries are drawn to a low-rank version of themselves, which holds no local detail."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from .parallel import total
from .standardise import standardised

__all__ = ["decoupling_loss", "low_rank"]

RANK_DEFICIENT = 1e-12  #: eigenvalues of Q Q^T in float64 below this share of the largest are rounding


def low_rank(queries: Float[Tensor, "samples tokens channels"], rank: int) -> Float[Tensor, "samples tokens channels"]:
    """Project each sample's queries onto the ``rank`` directions that carry most of them.

    The projector V_k V_k^T, of the right singular vectors of each [tokens, channels] matrix, is a constant to the
    gradient, which reaches the queries through the product alone.
    """
    if rank >= min(queries.shape[1:]):
        return queries
    with torch.no_grad():
        directions = _directions(queries.detach().float(), rank).to(queries.dtype)
    return queries @ directions @ directions.transpose(1, 2)


def _directions(queries: Float[Tensor, "samples tokens channels"], rank: int) -> Float[Tensor, "samples channels rank"]:
    """The first right singular vectors, from the eigenvectors of the smaller of Q Q^T and Q^T Q: faster than an SVD."""
    finite = queries.nan_to_num(0, 0, 0)  # NaN must reach the loss, which names its frames
    scaled = finite / finite.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if scaled.shape[1] >= scaled.shape[2]:
        return torch.linalg.eigh(scaled.transpose(1, 2) @ scaled).eigenvectors[:, :, -rank:]
    scaled = scaled.double()  # V = Q^T U / sigma asks for more digits than Q^T Q, whose eigenvectors are V
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
    """KL(softmax(Q_b) || softmax(Q_a)) with Q_b held, plus its mirror KL(softmax(Q_a) || softmax(Q_b)) with Q_a held.

    The first is the method's L_dec: it moves Q_a. The second moves Q_b, so that its few directions come to hold what
    Q_a says; without it nothing would ever train the tokens of b. Both are means over
    queries, those of all processes. ``standardise`` gives each query mean 0 and variance 1 first: as they are, queries
    may become so small that every softmax is flat, and the loss vanishes with nothing decoupled.
    """
    if standardise:
        semantic, projected = standardised(semantic), standardised(projected)
    a, b = log_softmax(semantic, -1), log_softmax(projected, -1)
    queries = total(semantic.new_tensor(semantic.shape[0] * semantic.shape[1]))
    held_b = kl_div(a, b.detach(), reduction="sum", log_target=True)
    held_a = kl_div(b, a.detach(), reduction="sum", log_target=True)
    return (held_b + held_a) / queries

"""Decoupling: the semantic queries are drawn to a low-rank version of themselves, which holds no local detail."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from .parallel import total
from .standardise import standardised

__all__ = ["decoupling_loss", "low_rank"]


def low_rank(queries: Float[Tensor, "samples tokens channels"], rank: int) -> Float[Tensor, "samples tokens channels"]:
    """Project each sample's queries onto the ``rank`` directions that carry most of them.

    The projector V_k V_k^T comes from a float32 singular value decomposition of each [tokens, channels] matrix and is a
    constant to the gradient, which reaches the queries through the product alone.
    """
    if rank >= min(queries.shape[1:]):
        return queries
    with torch.no_grad():
        finite = queries.detach().float().nan_to_num(0, 0, 0)  # NaN must reach the loss, which names its frames
        directions = torch.linalg.svd(finite, full_matrices=False).Vh[:, :rank].to(queries.dtype)
    return (queries @ directions.transpose(1, 2)) @ directions


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

"""The memberships that are kept of an image: of each cell of the grouping grid the strongest few, in 8 bits."""

import numpy as np
import torch
from jaxtyping import Float, Int16, UInt8, UInt16
from torch import Tensor
from torch.nn.functional import pad

from ...cache.schema import KEPT

__all__ = ["as_indices", "strongest_memberships"]


def strongest_memberships(
    assignment: Float[Tensor, "batch agents height width"],
) -> tuple[
    UInt8[Tensor, "batch 4 height width"] | Int16[Tensor, "batch 4 height width"], UInt8[Tensor, "batch 4 height width"]
]:
    """Indices and weights (255ths) of the agents that each cell belongs to most, the largest membership first.

    Of equal memberships the agent with the lower index comes first, on every device. Fewer agents than are kept leave
    index 0 with weight 0. Indices are int16 where there are more than 256 agents.
    """
    left, kept = assignment.clone(), min(KEPT, assignment.shape[1])
    indices, weights = [], []
    for _ in range(kept):  # topk and sort do not say which of equal values comes first; max does
        weight, index = left.max(dim=1, keepdim=True)
        left.scatter_(1, index, -1.0)
        indices.append(index)
        weights.append(weight)
    missing = (0, 0, 0, 0, 0, KEPT - kept)
    index = pad(torch.cat(indices, dim=1), missing).to(torch.uint8 if assignment.shape[1] <= 256 else torch.int16)
    return index, pad(torch.cat(weights, dim=1), missing).mul_(255).round_().nan_to_num_().to(torch.uint8)


def as_indices(
    assignment: UInt8[Tensor, "batch 4 height width"] | Int16[Tensor, "batch 4 height width"],
) -> UInt8[np.ndarray, "batch 4 height width"] | UInt16[np.ndarray, "batch 4 height width"]:
    """Indices on the host as the unsigned integers of a cache, which torch has no arithmetic for beyond 8 bits."""
    values = assignment.numpy()
    return values if values.dtype == np.uint8 else values.view(np.uint16)

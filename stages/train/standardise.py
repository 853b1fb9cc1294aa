"""Vectors freed of their size, so that only their direction is compared."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm

__all__ = ["standardised"]


def standardised(rows: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
    """Each row less its mean over the channels, over its deviation."""
    return layer_norm(rows, rows.shape[-1:])

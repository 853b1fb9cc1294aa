"""What a network's output says of each point, as probabilities on the host, and their fusion."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..evaluate.fusion import fused_probabilities
from ..evaluate.settings import FusionRule
from .network import NetworkOutput

__all__ = ["Readings"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Readings:
    """Softmax of each head, [P, C]; ``seen`` (2D) is 0 throughout for a point that no image shows.

    ``lidar`` is the 3D reading that no image has touched, and ``weight``, 0 to 1, how far a point's images may be
    trusted; None where the output has no such part.
    """

    seen: Float[np.ndarray, "points classes"] | None
    cloud: Float[np.ndarray, "points classes"]
    lidar: Float[np.ndarray, "points classes"] | None
    weight: Float[np.ndarray, "points"] | None

    @classmethod
    def of(cls, output: NetworkOutput, shown: Bool[Tensor, "points"] | None) -> "Readings":
        """The readings of ``output``; images show the points where ``shown`` holds, or all."""
        seen = _softmax(output.logits_2d) if output.logits_2d is not None else None
        if seen is not None and shown is not None:
            seen[~shown.cpu().numpy()] = 0
        return cls(
            seen=seen,
            cloud=_softmax(output.logits_3d),
            lidar=_softmax(output.logits_lidar) if output.logits_lidar is not None else None,
            weight=output.image_weight.detach().cpu().numpy() if output.image_weight is not None else None,
        )

    def fused(
        self, rule: FusionRule, prior: Float64[np.ndarray, "classes"] | None
    ) -> Float64[np.ndarray, "points classes"]:
        """The fusion of the readings by ``rule``; ``prior`` is the network's."""
        return fused_probabilities(
            rule,
            self.cloud,
            probabilities_2d=self.seen,
            probabilities_lidar=self.lidar,
            image_weight=self.weight,
            prior=prior,
        )


def _softmax(logits: Float[Tensor, "points classes"]) -> Float[np.ndarray, "points classes"]:
    return logits.detach().softmax(1).cpu().numpy()

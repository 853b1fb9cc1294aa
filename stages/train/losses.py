"""The losses of stage two (method, section 3), each a mean that is zero, never NaN, where it has nothing to count.

The count is that of all processes (``parallel``), the sum this process's own: so the processes' losses add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, smooth_l1_loss

from ..datasets.labels import IGNORE
from .decoupling import decoupling_loss
from .network import NetworkOutput
from .parallel import total
from .settings import TrainSettings
from .standardise import standardised

__all__ = [
    "Losses",
    "agreement_loss",
    "cross_modal_loss",
    "source_losses",
    "target_losses",
    "weighted_cross_entropy",
]

Terms = dict[str, tuple[float, Tensor]]  # by name: weight and value


@dataclass(frozen=True, kw_only=True, eq=False)
class Losses:
    """The ``total`` to go backward from, and its ``terms`` by name before their weights."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]

    @classmethod
    def weighted(cls, terms: Terms) -> "Losses":
        """The sum of ``terms``; one whose weight is 0 is named and not summed."""
        total = torch.stack([weight * value for weight, value in terms.values() if weight]).sum()
        return cls(total=total, terms={name: value for name, (_, value) in terms.items()})

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(total=self.total + other.total, terms={**self.terms, **other.terms})


def weighted_cross_entropy(
    logits: Float[Tensor, "points classes"],
    labels: Int64[Tensor, "points"],
    weights: Float[Tensor, "classes"],
) -> Float[Tensor, ""]:
    """Cross entropy, each point weighted by its label's weight, over the sum of those weights; -100 does not count."""
    loss = cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="sum")
    counted = weights[labels.clamp(min=0)].mul(labels != IGNORE).sum()
    return loss / total(counted).clamp(min=torch.finfo(logits.dtype).tiny)


def cross_modal_loss(
    student: Float[Tensor, "points classes"], teacher: Float[Tensor, "points classes"]
) -> Float[Tensor, ""]:
    """KL(softmax(teacher), held || softmax(student)), mean over points, labelled or not."""
    loss = kl_div(log_softmax(student, 1), log_softmax(teacher.detach(), 1), reduction="sum", log_target=True)
    return loss / _count(student, len(student))


def agreement_loss(
    pairs: Sequence[tuple[Tensor, Tensor]], *, hold_refined: bool, standardise: bool
) -> Float[Tensor, ""]:
    """SmoothL1 between plain and refined features: mean over a stage's elements, then over the stages.

    ``standardise`` gives each voxel's features mean 0 and variance 1 first. Both sides come from the same layers, so
    plain features that follow held, larger ones drive those ahead of them; as they are, both grow without end.
    """
    if standardise:
        pairs = [(standardised(own), standardised(met)) for own, met in pairs]
    stages = [
        smooth_l1_loss(own, met.detach() if hold_refined else met, reduction="sum") / _count(own, own.numel())
        for own, met in pairs
    ]
    return torch.stack(stages).mean()


def source_losses(
    output: NetworkOutput,
    labels: Int64[Tensor, "points"],
    weights: Float[Tensor, "classes"],
    settings: TrainSettings,
    shown: Bool[Tensor, "points"] | None = None,
) -> Losses:
    """Every loss that the labelled source gives the network's ``output``, and their weighted sum.

    Those of the 2D head take the points that an image shows: all, or those where ``shown`` holds.
    """
    terms: Terms = {"ce_3d": (1.0, weighted_cross_entropy(output.logits_3d, labels, weights))}
    if output.logits_lidar is not None:
        terms["ce_lidar"] = (1.0, weighted_cross_entropy(output.logits_lidar, labels, weights))
    if output.logits_2d is not None and output.auxiliary_2d is not None and output.auxiliary_3d is not None:
        rows = slice(None) if shown is None else shown
        terms["ce_2d"] = (1.0, weighted_cross_entropy(output.logits_2d[rows], labels[rows], weights))
        terms["xm_2d"] = (settings.lam_src, cross_modal_loss(output.auxiliary_2d[rows], output.logits_3d[rows]))
        terms["xm_3d"] = (settings.lam_src, cross_modal_loss(output.auxiliary_3d[rows], output.logits_2d[rows]))
    if output.queries is not None:
        terms["decoupling"] = (settings.lam_dec, decoupling_loss(*output.queries, standardise=settings.standardise))
    if output.refined:
        agreement = agreement_loss(
            output.refined, hold_refined=output.teacher is not None, standardise=settings.standardise
        )
        terms["agreement"] = (settings.lam_sup, agreement)
    if output.teacher is not None:
        terms["ce_teacher"] = (settings.lam_teacher, weighted_cross_entropy(output.teacher, labels, weights))
    return Losses.weighted(terms)


def target_losses(
    output: NetworkOutput,
    pseudo_labels: Int64[Tensor, "points 2"] | None,
    settings: TrainSettings,
    shown: Bool[Tensor, "points"] | None = None,
) -> Losses:
    """Every loss that the unlabelled target gives the network's ``output``, and their weighted sum.

    Each head learns its own column of ``pseudo_labels``, 2D and 3D; as in xMUDA, no class weighs more than another.
    The LiDAR-only head learns that of the 3D head. ``shown`` is as in ``source_losses``; no pseudo label of the 2D head
    stands where it does not hold.
    """
    terms: Terms = {}
    rows = slice(None) if shown is None else shown
    if pseudo_labels is not None:
        seen, cloud = pseudo_labels.unbind(1)
        heads = {
            "pl_2d": (output.logits_2d, seen),
            "pl_3d": (output.logits_3d, cloud),
            "pl_lidar": (output.logits_lidar, cloud),
        }
        for name, (logits, labels) in heads.items():
            if logits is not None:
                equal = logits.new_ones(logits.shape[1])
                terms[name] = (settings.lam_pl, weighted_cross_entropy(logits, labels, equal))
    if output.logits_2d is not None and output.auxiliary_2d is not None and output.auxiliary_3d is not None:
        terms["xm_2d_target"] = (settings.lam_trg, cross_modal_loss(output.auxiliary_2d[rows], output.logits_3d[rows]))
        terms["xm_3d_target"] = (settings.lam_trg, cross_modal_loss(output.auxiliary_3d[rows], output.logits_2d[rows]))
    return Losses.weighted(terms)


def _count(like: Tensor, own: int) -> Float[Tensor, ""]:
    """How many all processes have together, at least 1."""
    return total(like.new_tensor(own)).clamp(min=1)

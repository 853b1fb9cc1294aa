"""The losses of stage two, each a mean; 0 instead of NaN if there is nothing to average.

Each is the sum over this process divided by the count over all processes (``parallel``), so that the losses of the
processes add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, smooth_l1_loss

from ..datasets.labels import IGNORE
from .network import NetworkOutput
from .parallel import total
from .query_attention import decoupling_loss, standardised
from .settings import TrainSettings

__all__ = [
    "Losses",
    "Terms",
    "agreement_loss",
    "cross_modal_loss",
    "mean_over_processes",
    "source_losses",
    "target_losses",
    "weighted_cross_entropy",
]

Terms = dict[str, tuple[float, Tensor]]  # by name: weight and value


@dataclass(frozen=True, kw_only=True, eq=False)
class Losses:
    """The weighted ``total`` to back-propagate, and its unweighted ``terms`` by name."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]

    @classmethod
    def weighted(cls, terms: Terms) -> "Losses":
        """Adds up ``terms``; one whose weight is 0 is reported but not added."""
        total = torch.stack([weight * value for weight, value in terms.values() if weight]).sum()
        return cls(total=total, terms={name: value for name, (_, value) in terms.items()})

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(total=self.total + other.total, terms={**self.terms, **other.terms})


def weighted_cross_entropy(
    logits: Float[Tensor, "points classes"],
    labels: Int64[Tensor, "points"],
    weights: Float[Tensor, "classes"],
) -> Float[Tensor, ""]:
    """Returns the mean cross entropy, each point weighted by the weight of its label; label -100 is ignored."""
    loss = cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="sum")
    counted = weights[labels.clamp(min=0)].mul(labels != IGNORE).sum()
    return loss / total(counted).clamp(min=torch.finfo(logits.dtype).tiny)


def cross_modal_loss(
    student: Float[Tensor, "points classes"], teacher: Float[Tensor, "points classes"]
) -> Float[Tensor, ""]:
    """Returns KL(softmax(teacher) || softmax(student)), the mean over all points; no gradient reaches the teacher."""
    loss = kl_div(log_softmax(student, 1), log_softmax(teacher.detach(), 1), reduction="sum", log_target=True)
    return mean_over_processes(loss, len(student))


def agreement_loss(
    pairs: Sequence[tuple[Tensor, Tensor]], *, detach_refined: bool, standardise: bool
) -> Float[Tensor, ""]:
    """Returns the SmoothL1 loss between plain and refined features: the mean per stage, then over the stages.

    ``detach_refined`` detaches the refined features. ``standardise`` first gives each voxel's features mean 0 and
    variance 1. Without it, plain features that are pulled towards larger, detached ones enlarge these too, because both
    come from the same layers, and both grow without bound.
    """
    if standardise:
        pairs = [(standardised(plain), standardised(refined)) for plain, refined in pairs]
    stages = [
        mean_over_processes(
            smooth_l1_loss(plain, refined.detach() if detach_refined else refined, reduction="sum"), plain.numel()
        )
        for plain, refined in pairs
    ]
    return torch.stack(stages).mean()


def source_losses(
    output: NetworkOutput,
    labels: Int64[Tensor, "points"],
    weights: Float[Tensor, "classes"],
    settings: TrainSettings,
    shown: Bool[Tensor, "points"] | None = None,
) -> Losses:
    """Returns all losses of the network's ``output`` on labelled source frames, and their weighted sum.

    Losses of the 2D head use the points that an image shows: all, or those where ``shown`` is True.
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
            output.refined, detach_refined=output.teacher is not None, standardise=settings.standardise
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
    """Returns all losses of the network's ``output`` on unlabelled target frames, and their weighted sum.

    Each head learns from its column of ``pseudo_labels``, 2D or 3D, without class weights, as in xMUDA. The LiDAR-only
    head learns from the column of the 3D head. ``shown`` is that of ``source_losses``; pseudo labels of the 2D head
    exist only where it is True. With ``pl_weigh`` a point counts by exp(-KL(2D || 3D)) of the heads' predictions, which
    gets no gradient, and by 1 where no image shows it (after Zheng and Yang, IJCV 2021).
    """
    terms: Terms = {}
    rows = slice(None) if shown is None else shown
    if pseudo_labels is not None:
        seen, cloud = pseudo_labels.unbind(1)
        weight = _agreement(output, shown) if settings.pl_weigh else None
        heads = {
            "pl_2d": (output.logits_2d, seen),
            "pl_3d": (output.logits_3d, cloud),
            "pl_lidar": (output.logits_lidar, cloud),
        }
        for name, (logits, labels) in heads.items():
            if logits is not None:
                terms[name] = (settings.lam_pl, _mean_cross_entropy(logits, labels, weight))
    if output.logits_2d is not None and output.auxiliary_2d is not None and output.auxiliary_3d is not None:
        terms["xm_2d_target"] = (settings.lam_trg, cross_modal_loss(output.auxiliary_2d[rows], output.logits_3d[rows]))
        terms["xm_3d_target"] = (settings.lam_trg, cross_modal_loss(output.auxiliary_3d[rows], output.logits_2d[rows]))
    return Losses.weighted(terms)


def _agreement(output: NetworkOutput, shown: Bool[Tensor, "points"] | None) -> Float[Tensor, "points"] | None:
    """Returns exp(-KL(2D || 3D)) of each point, 1 where no image shows it; None without a 2D head."""
    if output.logits_2d is None:
        return None
    images, cloud = (log_softmax(logits.detach(), 1) for logits in (output.logits_2d, output.logits_3d))
    weight = (-kl_div(cloud, images, reduction="none", log_target=True).sum(1)).exp()
    return weight if shown is None else weight.where(shown, 1.0)


def _mean_cross_entropy(
    logits: Float[Tensor, "points classes"], labels: Int64[Tensor, "points"], weight: Float[Tensor, "points"] | None
) -> Float[Tensor, ""]:
    """Returns the mean cross entropy of the labelled points, each times its ``weight``."""
    if weight is None:
        return weighted_cross_entropy(logits, labels, logits.new_ones(logits.shape[1]))
    loss = (cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none") * weight).sum()
    return loss / total((labels != IGNORE).sum().to(logits)).clamp(min=1)


def mean_over_processes(value: Float[Tensor, ""], count: int) -> Float[Tensor, ""]:
    """Returns ``value`` divided by the sum of ``count`` over all processes (at least 1)."""
    return value / total(value.new_tensor(count)).clamp(min=1)

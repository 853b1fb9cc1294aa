"""Validation during training: every process predicts its part of the frames, and all know the score."""

from dataclasses import replace

import torch

from ..evaluate.scores import score_frames
from ..evaluate.settings import FusionRule
from ..train.domain import Domain
from ..train.loop import ValidationScores
from ..train.network import Network
from ..train.parallel import number_of_processes, rank, total
from .inference import predict_frames

__all__ = ["validate"]


def validate(network: Network, domain: Domain, *, fusion: FusionRule, workers: int) -> ValidationScores:
    """Score ``network`` on every frame of ``domain``, its predictions fused by the rule ``fusion``."""
    shares = number_of_processes() if len(domain) >= number_of_processes() else 1  # else each predicts them all
    own = replace(domain, frames=domain.frames[rank() % shares :: shares])
    predictions = predict_frames(network, own, fusion=fusion, workers=workers, description="validate")
    card = score_frames(predictions, network.classes)
    if shares > 1:
        confusion = {
            modality: total(torch.from_numpy(counts).to(network.device)).cpu().numpy()
            for modality, counts in card.confusion.items()
        }
        card = replace(card, frames=len(domain), confusion=confusion, parts={})
    if not card.points:
        return ValidationScores(points=0, miou={}, iou={})
    return ValidationScores(
        points=card.points,
        miou={str(modality): value for modality, value in card.miou.items()},
        iou={name: {str(modality): v for modality, v in values.items()} for name, values in card.iou.items()},
    )

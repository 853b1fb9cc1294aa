"""Validation during training: every process predicts its part of the frames, and all know the score."""

from dataclasses import replace

import torch

from ..evaluate.card import ScoreCard
from ..evaluate.scores import score_frames
from ..evaluate.settings import FusionRule
from .domain import Domain
from .inference import predict_frames
from .network import Network
from .parallel import number_of_processes, rank, total

__all__ = ["validate"]


def validate(network: Network, domain: Domain, *, fusion: FusionRule, workers: int) -> ScoreCard:
    """Score ``network`` on every frame of ``domain``, its predictions fused by the rule ``fusion``."""
    shares = number_of_processes() if len(domain) >= number_of_processes() else 1  # else each predicts them all
    own = replace(domain, frames=domain.frames[rank() % shares :: shares])
    predictions = predict_frames(network, own, fusion=fusion, workers=workers, description="validate")
    card = score_frames(predictions, network.classes)
    if shares == 1:
        return card
    confusion = {
        modality: total(torch.from_numpy(counts).to(network.device)).cpu().numpy()
        for modality, counts in card.confusion.items()
    }
    return replace(card, frames=len(domain), confusion=confusion, parts={})

"""The report's sections on what the network learned: attention to agents, and errors by distance."""

from typing import TYPE_CHECKING

import numpy as np

from .attention import AttentionKind, FrameAttention, frame_attention
from .errors import errors_picture, tally_errors
from .page import Picture, Section

if TYPE_CHECKING:
    from ...stages.evaluate.settings import FusionRule
    from ...stages.train.domain import Domain
    from ..runs import TrainedRun

__all__ = ["analysis_sections", "attention_over", "mean_agreement"]

ANALYSED_FRAMES = 8


def attention_over(run: "TrainedRun", domain: "Domain") -> list[FrameAttention]:
    """Returns the attention of ``run`` on frames evenly spread over ``domain``; empty for a network without agents."""
    positions = np.unique(np.linspace(0, len(domain) - 1, ANALYSED_FRAMES + 2).round().astype(int)[1:-1])
    found = [frame_attention(run, domain, int(position)) for position in positions]
    return [each for each in found if each is not None]


def mean_agreement(frames: list[FrameAttention], kind: AttentionKind) -> tuple[float, float] | None:
    """Returns the mean of ``FrameAttention.agreement`` over ``frames``; None if no frame has it."""
    found = [shares for frame in frames if (shares := frame.agreement(kind))]
    if not found:
        return None
    own, uniform = np.mean(found, axis=0)
    return float(own), float(uniform)


def analysis_sections(run: "TrainedRun", rule: "FusionRule") -> list[Section]:
    """Returns sections on the target's test split: attention if the run reads agents, and errors.

    ``rule`` fuses the predictions.
    """
    domain = run.domain("target", "test")
    frames = attention_over(run, domain)
    attention = [_SECTIONS[kind](frames) for kind in frames[0].kinds] if frames else []
    return [*attention, _errors(run, domain, rule)]


def _located(frames: list[FrameAttention]) -> Section:
    agreement = mean_agreement(frames, "located") or (0.0, 0.0)
    return Section(
        heading="Which agents the points read",
        text="Each row is one agent. On the left, how much each point reads of it: what its pixels' cells have of the"
        f" agent. On the right, where it lies in the image. Over {len(frames)} frames, {100 * agreement[0]:.0f} % of"
        " what a point reads is of agents of its own class, that of most points in an agent's pixels; reading all"
        f" agents alike would give {100 * agreement[1]:.0f} %.",
        parts=[
            Picture(
                png=frames[0].picture("located"), caption="The agents that some points read most, and others least."
            )
        ],
    )


def _queries(frames: list[FrameAttention]) -> Section:
    agreement = mean_agreement(frames, "queries")
    sentence = "Image queries attend to cells of the feature maps here, so there are no agents to draw."
    if agreement:
        sentence = (
            f"Over {len(frames)} frames, {100 * agreement[0]:.0f} % of a point's attention ends on agents of its own"
            f" class; attention to all agents alike would give {100 * agreement[1]:.0f} %."
        )
    return Section(
        heading="What the queries look at",
        text="Each row is one 3D query. On the left, how much each point attends to it in the last decoder stage; on"
        f" the right, where the agents lie that it reads through the image's queries. {sentence}",
        parts=[
            Picture(
                png=frames[0].picture("queries"),
                caption="The queries whose attention differs most from point to point.",
            )
        ],
    )


_SECTIONS = {"located": _located, "queries": _queries}


def _errors(run: "TrainedRun", domain: "Domain", rule: "FusionRule") -> Section:
    tally = tally_errors(run.network, domain, rule)
    output = f"the fused prediction ({rule})" if run.config.fusion.image else "3D"
    return Section(
        heading="Errors by distance and class",
        text=f"Per cent of the labelled points that {output} gets wrong, by distance from the sensor, on frames spread"
        " over the target's test split.",
        parts=[
            Picture(
                png=errors_picture(tally.shares, f"wrong points, % ({output})", tally.classes),
                caption="Empty cells have no point of the class.",
            )
        ],
    )

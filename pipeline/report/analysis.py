"""The report's sections on what the network learned: attention to agents, and errors by class and distance."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from ...stages.datasets.labels import IGNORE
from ...stages.evaluate.settings import FusionRule
from ...stages.predict.inference import predict_frames
from ...stages.train.domain import Domain
from ...stages.train.network import Network
from ..runs import TrainedRun
from .attention import AttentionKind, FrameAttention, frame_attention
from .figures import draw_shares, new_figure, png_bytes
from .frames import spread_positions
from .page import Picture, Section

__all__ = ["ErrorTally", "analysis_sections", "attention_over", "errors_picture", "mean_agreement", "tally_errors"]

ANALYSED_FRAMES = 8
DISTANCES = (0.0, 10.0, 20.0, 30.0, 40.0, np.inf)  #: edges of the bins in metres
MAX_FRAMES = 40  #: of the errors by distance


def attention_over(run: TrainedRun, domain: Domain) -> list[FrameAttention]:
    """Returns the attention of ``run`` on frames evenly spread over ``domain``; empty for a network without agents."""
    found = [frame_attention(run, domain, position) for position in spread_positions(domain, ANALYSED_FRAMES)]
    return [each for each in found if each is not None]


def mean_agreement(frames: list[FrameAttention], kind: AttentionKind) -> tuple[float, float] | None:
    """Returns the mean of ``FrameAttention.agreement`` over ``frames``; None if no frame has it."""
    found = [shares for frame in frames if (shares := frame.agreement(kind))]
    if not found:
        return None
    own, uniform = np.mean(found, axis=0)
    return float(own), float(uniform)


def analysis_sections(run: TrainedRun, rule: FusionRule) -> list[Section]:
    """Returns sections on the target's test split: attention if the run reads agents, and errors.

    ``rule`` fuses the predictions.
    """
    domain = run.domain("target", "test")
    frames = attention_over(run, domain)
    attention = [_SECTIONS[kind](frames) for kind in frames[0].kinds] if frames else []
    return [*attention, _errors(run, domain, rule)]


def _located(frames: list[FrameAttention]) -> Section:
    sentence = _agreement(frames, "located", "what a point reads is of")
    return Section(
        heading="Which agents the points read",
        text="Each row is one agent. On the left, each point's membership in it, from the cells at its pixels. On the"
        f" right, where it lies in the image. {sentence}",
        parts=[Picture(frames[0].picture("located"), "The agents that some points read most, and others least.")],
    )


def _queries(frames: list[FrameAttention]) -> Section:
    queries = frames[0].insight.queries
    sentence = "Image queries attend to cells of the feature maps here, so there are no agents to draw."
    if queries is not None and queries.agents is not None:
        sentence = _agreement(frames, "queries", "a point's attention ends on")
    return Section(
        heading="What the queries look at",
        text="Each row is one 3D query. On the left, how much each point attends to it in the last decoder stage; on"
        f" the right, where the agents lie that it reads through the image's queries. {sentence}",
        parts=[Picture(frames[0].picture("queries"), "The queries whose attention differs most from point to point.")],
    )


def _agreement(frames: list[FrameAttention], kind: AttentionKind, what: str) -> str:
    agreement = mean_agreement(frames, kind)
    if agreement is None:
        return "No point of these frames has a label to compare its agents with."
    own, uniform = agreement
    return (
        f"Over {len(frames)} frames, {100 * own:.0f} % of {what} agents of its own class, that of most points in an"
        f" agent's pixels; uniform attention would give {100 * uniform:.0f} %."
    )


_SECTIONS = {"located": _located, "queries": _queries}


def _errors(run: TrainedRun, domain: Domain, rule: FusionRule) -> Section:
    tally = tally_errors(run.network, domain, rule)
    output = f"the fused prediction ({rule})" if run.config.fusion.image else "3D"
    return Section(
        heading="Errors by distance and class",
        text=f"Per cent of the labelled points that {output} gets wrong, by distance from the sensor, on frames spread"
        " over the target's test split.",
        parts=[
            Picture(
                errors_picture(tally.shares, f"wrong points, % ({output})", tally.classes),
                "Empty cells have no point of the class.",
            )
        ],
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ErrorTally:
    """Counts of labelled points, and of wrong ones among them, by class and distance bin."""

    classes: tuple[str, ...]
    points: Int64[np.ndarray, "classes bins"]
    wrong: Int64[np.ndarray, "classes bins"]

    @property
    def shares(self) -> Float[np.ndarray, "rows bins"]:
        """Per cent of wrong points: a row per class and one for all classes; NaN without points."""
        wrong, points = np.vstack([self.wrong, self.wrong.sum(0)]), np.vstack([self.points, self.points.sum(0)])
        return np.divide(100.0 * wrong, points, out=np.full(points.shape, np.nan), where=points > 0)


def tally_errors(network: Network, domain: Domain, fusion: FusionRule) -> ErrorTally:
    """Predicts at most ``MAX_FRAMES`` frames evenly spread over ``domain``, and counts points wrong by ``fusion``."""
    spread = np.unique(np.linspace(0, len(domain) - 1, min(MAX_FRAMES, len(domain))).round().astype(int))
    few = dataclasses.replace(domain, frames=domain.frames[spread])
    shape = (len(network.classes), len(DISTANCES) - 1)
    points, wrong = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for prediction in predict_frames(network, few, fusion=fusion, description="errors by distance"):
        labels, counted = prediction.labels, prediction.labels != IGNORE
        cells = labels[counted], np.digitize(np.asarray(prediction.distance), DISTANCES[1:-1])[counted]
        np.add.at(points, cells, 1)
        np.add.at(wrong, cells, prediction.decided[counted] != labels[counted])
    return ErrorTally(classes=network.classes, points=points, wrong=wrong)


def errors_picture(shares: Float[np.ndarray, "rows bins"], title: str, classes: Sequence[str]) -> bytes:
    """Returns a PNG with the heat map of ``ErrorTally.shares``; the last row is over all ``classes``."""
    figure = new_figure(4.8, 3.2)
    axes = figure.add_subplot(1, 1, 1)
    draw_shares(axes, shares, dark=60, fontsize=7, cmap="Reds", aspect="auto")
    bins = [
        f"{low:.0f}-{high:.0f}" if np.isfinite(high) else f"{low:.0f}+" for low, high in itertools.pairwise(DISTANCES)
    ]
    axes.set_xticks(range(len(bins)), bins, fontsize=7)
    axes.set_yticks(range(len(shares)), [*classes, "all"], fontsize=8)
    axes.set_xlabel("metres", fontsize=8)
    axes.set_title(title, fontsize=9)
    return png_bytes(figure)

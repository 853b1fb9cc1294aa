"""The sections of the report on what the network learned: the agents it reads, their spectrum, and where it errs."""

from typing import TYPE_CHECKING

import numpy as np

from .attention import FrameAttention, Way, look_at_frame
from .errors import errors_picture, tally_errors
from .page import Picture, Section, Table
from .spectrum import spectra_of, spectrum_picture, spectrum_rows

if TYPE_CHECKING:
    from ...stages.evaluate.settings import FusionRule
    from ...stages.train.domain import Domain
    from ..runs import TrainedRun

__all__ = ["insight_sections", "looks_over", "mean_agreement"]

LOOKED_AT = 8


def looks_over(run: "TrainedRun", domain: "Domain", frames: int = LOOKED_AT) -> list[FrameAttention]:
    """What ``run`` reads on frames that are spread over ``domain``; empty where it reads no agents."""
    places = np.unique(np.linspace(0, len(domain) - 1, frames + 2).round().astype(int)[1:-1])
    looks = [look_at_frame(run, domain, int(place)) for place in places]
    return [look for look in looks if look is not None]


def mean_agreement(looks: list[FrameAttention], way: Way) -> tuple[float, float] | None:
    """The mean of ``FrameAttention.agreement`` over the frames; None where there is none."""
    found = [pair for look in looks if (pair := look.agreement(way))]
    if not found:
        return None
    own, alike = np.mean(found, axis=0)
    return float(own), float(alike)


def insight_sections(run: "TrainedRun", rule: "FusionRule") -> list[Section]:
    """Agents and spectrum where the run reads agents, and errors by distance and class, on the target's test split.

    ``rule`` is how predictions are fused.
    """
    domain = run.domain("target", "test")
    looks = looks_over(run, domain)
    read = [_SECTIONS[way](looks) for way in looks[0].ways] if looks else []
    return [*read, *([_spectrum(run, looks)] if looks else []), _errors(run, domain, rule)]


def _located(looks: list[FrameAttention]) -> Section:
    agreed = mean_agreement(looks, "located") or (0.0, 0.0)
    return Section(
        heading="Which agents the points read",
        text="Each row is one agent. On the left, how much each point reads of it: what its pixels' cells have of the"
        f" agent. On the right, where it lies in the image. Over {len(looks)} frames, {100 * agreed[0]:.0f} % of what a"
        " point reads is of agents of its own class, that of most points in an agent's pixels; reading all agents"
        f" alike would give {100 * agreed[1]:.0f} %.",
        parts=[
            Picture(png=looks[0].picture("located"), caption="The agents that some points read most, and others least.")
        ],
    )


def _queries(looks: list[FrameAttention]) -> Section:
    agreed = mean_agreement(looks, "queries")
    said = "Image queries attend to cells of the feature maps here, so there are no agents to draw."
    if agreed:
        said = (
            f"Over {len(looks)} frames, {100 * agreed[0]:.0f} % of a point's attention ends on agents of its own class;"
            f" attention to all agents alike would give {100 * agreed[1]:.0f} %."
        )
    return Section(
        heading="What the queries look at",
        text="Each row is one 3D query. On the left, how much each point attends to it in the last decoder stage; on"
        f" the right, where the agents lie that it meets through the image's queries. {said}",
        parts=[
            Picture(
                png=looks[0].picture("queries"),
                caption="The queries whose attention differs most from point to point.",
            )
        ],
    )


_SECTIONS = {"located": _located, "queries": _queries}


def _spectrum(run: "TrainedRun", looks: list[FrameAttention]) -> Section:
    fusion = run.config.fusion
    spectra = spectra_of([look.insight for look in looks])
    rank = min(fusion.rank, max(map(len, spectra.values())))
    does = {
        "none": "Nothing is decoupled in this network.",
        "truncate": f"The network reads agents and queries on the first {rank} directions of their matrix alone.",
        "loss": f"A loss draws Q_a to what the first {rank} directions of Q_b hold; what points read stays whole.",
    }
    return Section(
        heading="What decoupling leaves",
        text="Singular values of the matrices of agents, one for each image, and of queries, one for each frame, over"
        f" {len(looks)} frames. {does[fusion.decoupling]}",
        parts=[
            Table(
                header=["matrix", f"energy beyond {rank} directions", "directions with 99 % of it"],
                rows=spectrum_rows(spectra, rank),
            ),
            Picture(png=spectrum_picture(spectra, rank), caption="Each kind of matrix, its whole energy scaled to 1."),
        ],
    )


def _errors(run: "TrainedRun", domain: "Domain", rule: "FusionRule") -> Section:
    tally = tally_errors(run.network, domain, "fused", fusion=rule)
    reading = f"the fused prediction ({rule})" if run.config.fusion.image else "3D"
    return Section(
        heading="Errors by distance and class",
        text=f"Per cent of the labelled points that {reading} gets wrong, by distance from the sensor, on frames spread"
        " over the target's test split.",
        parts=[
            Picture(
                png=errors_picture({f"wrong points, % ({reading})": [("", tally.shares)]}, tally.classes),
                caption="Empty cells have no point of the class.",
            )
        ],
    )

"""The sections of the report on what the network learned: attention, the spectrum of queries, and where it errs."""

from typing import TYPE_CHECKING

import numpy as np

from .attention import FrameAttention, look_at_frame
from .errors import errors_picture, tally_errors
from .page import Picture, Section, Table
from .spectrum import query_spectra, spectrum_picture, spectrum_rows

if TYPE_CHECKING:
    from ...stages.evaluate.settings import FusionRule
    from ...stages.train.domain import Domain
    from ..runs import TrainedRun

__all__ = ["insight_sections", "looks_over"]

LOOKED_AT = 8


def looks_over(run: "TrainedRun", domain: "Domain", frames: int = LOOKED_AT) -> list[FrameAttention]:
    """The attention of ``run`` on frames that are spread over ``domain``; empty where it has no interface."""
    places = np.unique(np.linspace(0, len(domain) - 1, frames + 2).round().astype(int)[1:-1])
    looks = [look_at_frame(run, domain, int(place)) for place in places]
    return [look for look in looks if look is not None]


def insight_sections(run: "TrainedRun", rule: "FusionRule") -> list[Section]:
    """Attention and spectrum where the run has agents, and errors by distance and class, on the target's test split.

    ``rule`` is how predictions are fused.
    """
    domain = run.domain("target", "test")
    looks = looks_over(run, domain)
    return [*([_attention(looks), _spectrum(run, looks)] if looks else []), _errors(run, domain, rule)]


def _attention(looks: list[FrameAttention]) -> Section:
    return Section(
        heading="What the queries look at",
        text="Each row is one 3D query. On the left, how much each point attends to it in the last decoder stage; on"
        f" the right, where the agents lie that it meets through the image's queries. {_agreement(looks)}",
        parts=[
            Picture(png=looks[0].picture(), caption="The queries whose attention differs most from point to point.")
        ],
    )


def _agreement(looks: list[FrameAttention]) -> str:
    found = [pair for look in looks if (pair := look.agreement())]
    if not found:
        return "Image queries attend to cells of the feature maps here, so there are no agents to draw."
    own, alike = np.mean(found, axis=0)
    return (
        f"Over {len(found)} frames, {100 * own:.0f} % of a point's attention ends on agents of its own class;"
        f" attention to all agents alike would give {100 * alike:.0f} %."
    )


def _spectrum(run: "TrainedRun", looks: list[FrameAttention]) -> Section:
    rank = run.config.fusion.rank
    spectra = query_spectra([look.insight for look in looks])
    rank = min(rank, len(spectra["Q_a"]))
    return Section(
        heading="What decoupling leaves",
        text=f"Singular values of the query matrices over {len(looks)} frames. Decoupling draws Q_a to what the first"
        f" {rank} directions of Q_b hold.",
        parts=[
            Table(
                header=["queries", f"energy beyond {rank} directions", "directions with 99 % of it"],
                rows=spectrum_rows(spectra, rank),
            ),
            Picture(png=spectrum_picture(spectra, rank), caption="Each set of queries, its whole energy scaled to 1."),
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

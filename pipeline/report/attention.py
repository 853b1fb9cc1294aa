"""What the queries look at on one frame: voxels from above and the image side by side, and how well the two agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from ...stages.datasets.labels import IGNORE
from .agents import SeenImages, see_images
from .figures import new_figure, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ...stages.datasets.frames import Frame
    from ...stages.train.domain import Domain
    from ...stages.train.insight import Insight
    from ..runs import TrainedRun

__all__ = ["FrameAttention", "class_agreement", "look_at_frame", "striking_queries"]

SHOWN_QUERIES = 4
ALIKE = 0.8  #: correlation over the points above which two queries show the same


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameAttention:
    """One frame, its images and the attention of its queries."""

    frame: "Frame"
    seen: SeenImages
    insight: "Insight"

    def picture(self) -> bytes:
        """The most striking 3D queries, one a row: its points from above, its agents in the first image."""
        queries = striking_queries(self.insight.voxels)
        figure = new_figure(13.2, 2.6 * len(queries))
        for row, query in enumerate(queries):
            self._draw_points(figure.add_subplot(len(queries), 2, 2 * row + 1), query)
            self._draw_image(figure.add_subplot(len(queries), 2, 2 * row + 2), query)
        return png_bytes(figure)

    def agreement(self) -> "tuple[float, float] | None":
        """Share of the points' attention that goes to agents of their own class, and that of attention to all alike."""
        attention = self.insight.voxels_to_agents
        if attention is None:
            return None
        return class_agreement(attention, self.seen.agents_of(self.frame), self.frame.labels)

    def _draw_points(self, axes: "Axes", query: int) -> None:
        values = self.insight.voxels[:, query]
        order = values.argsort()
        x, y = self.frame.points[order, 0], self.frame.points[order, 1]
        most = max(float(np.percentile(values, 98)), 1e-6)
        shown = axes.scatter(x, y, c=values[order], s=4, linewidths=0, cmap="viridis", vmin=0, vmax=most)
        axes.plot(0, 0, marker="^", color="black", markersize=6)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(f"3D query {query}: attention of the points, from above (metres)", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.figure.colorbar(shown, ax=axes, shrink=0.85).ax.tick_params(labelsize=7)

    def _draw_image(self, axes: "Axes", query: int) -> None:
        picture = self.seen.pictures[0]
        axes.imshow(picture)
        axes.set_xticks([])
        axes.set_yticks([])
        looks = self.insight.queries_to_agents
        if looks is None:
            axes.set_title("the image (dense keys: no agents)", fontsize=9)
            return
        agents = self.seen.assignment.shape[1]
        heat = np.tensordot(looks[query, :agents], self.seen.assignment[0], 1)
        extent = (0, picture.shape[1], picture.shape[0], 0)
        axes.imshow(heat, cmap="inferno", alpha=0.6, extent=extent, interpolation="bilinear")
        first = looks[query].argsort()[::-1][:3]
        said = ", ".join(f"{agent} ({100 * looks[query, agent]:.0f} %)" for agent in first)
        axes.set_title(f"where its agents lie in the image; most of all agents {said}", fontsize=9)


def look_at_frame(run: "TrainedRun", domain: "Domain", position: int) -> FrameAttention | None:
    """The attention of ``run`` on one frame of ``domain``; None without an interface, features or points."""
    from ...stages.train.insight import look_inside

    if not run.config.fusion.interface or domain.features is None:
        return None
    insight = look_inside(run.network, domain, position)
    if insight is None:
        return None
    frame = domain.load(position)
    return FrameAttention(
        frame=frame, seen=see_images(run.config.extract, domain, domain.features, frame), insight=insight
    )


def striking_queries(voxels: Float[np.ndarray, "points tokens"], count: int = SHOWN_QUERIES) -> list[int]:
    """Queries but the sink whose attention differs most from point to point, no two of them alike."""
    centred = voxels - voxels.mean(0)
    spread = np.sqrt((centred**2).mean(0))
    chosen: list[int] = []
    for query in spread[1:].argsort()[::-1] + 1:
        same = [_correlation(centred[:, query], centred[:, other]) for other in chosen]
        if max(same, default=0.0) < ALIKE:
            chosen.append(int(query))
        if len(chosen) == count:
            break
    return chosen


def class_agreement(
    attention: Float[np.ndarray, "points agents"],
    agents_of_points: Int64[np.ndarray, "points"],
    labels: Int64[np.ndarray, "points"],
) -> tuple[float, float]:
    """Share of labelled points' attention on agents of their own class, and the share were all looked at alike.

    An agent's class is that of most labelled points whose pixels it claims; agents without such points are left out.
    Both shares are means over the classes there are, of means over their points.
    """
    labelled = labels != IGNORE
    classes = int(labels[labelled].max(initial=-1)) + 1
    counts = np.zeros((attention.shape[1], classes), np.int64)
    np.add.at(counts, (agents_of_points[labelled], labels[labelled]), 1)
    known = counts.sum(1) > 0
    kind = counts.argmax(1)[known] if classes else np.zeros(0, np.int64)
    looked = attention[labelled][:, known]
    looked = looked / np.maximum(looked.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    own = np.array([(kind == name) for name in range(classes)]).reshape(classes, len(kind))
    shares = [looked[labels[labelled] == name][:, own[name]].sum(1).mean() for name in _present(labels[labelled])]
    alike = [own[name].mean() for name in _present(labels[labelled])]
    return (float(np.mean(shares)), float(np.mean(alike))) if shares else (0.0, 0.0)


def _present(labels: Int64[np.ndarray, "points"]) -> Sequence[int]:
    return [int(name) for name in np.unique(labels)]


def _correlation(one: Float[np.ndarray, "points"], other: Float[np.ndarray, "points"]) -> float:
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale > 0 else 1.0

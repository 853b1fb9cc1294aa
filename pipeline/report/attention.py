"""Which agents the points of one frame read: points from above and the image side by side, and how well both agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int64

from ...stages.datasets.labels import IGNORE
from .agents import SeenImages, see_images
from .figures import new_figure, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ...stages.datasets.frames import Frame
    from ...stages.predict.attention import AttentionMaps
    from ...stages.train.domain import Domain
    from ..runs import TrainedRun

__all__ = ["FrameAttention", "Way", "class_agreement", "look_at_frame", "striking_columns"]

Way = Literal["located", "queries"]

SHOWN = 4
ALIKE = 0.8  #: correlation over the points above which two columns show the same


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameAttention:
    """One frame, its images, and how its points read the agents of these images.

    There are two ways: "located", each point reads the agents that its pixels belong to, and "queries", its voxel looks
    at 3D queries that met the image's.
    """

    frame: "Frame"
    seen: SeenImages
    insight: "AttentionMaps"

    @property
    def ways(self) -> tuple[Way, ...]:
        """Those that the network has."""
        located: tuple[Way, ...] = ("located",) if self.insight.memberships is not None else ()
        return (*located, "queries") if self.insight.queries is not None else located

    def picture(self, way: Way) -> bytes:
        """Four agents, or 3D queries, one a row: the points that read it from above, and where it lies in the image."""
        return self._located_picture() if way == "located" else self._query_picture()

    def agreement(self, way: Way) -> "tuple[float, float] | None":
        """Share of what points read that is of agents of their own class, and that of reading all agents alike.

        Over the points that an image shows. None where queries attend to cells of the feature maps.
        """
        read = self.insight.memberships
        if way == "queries":
            read = None if self.insight.queries is None else self.insight.queries.voxels_to_agents
        if read is None:
            return None
        shown = np.unique(self.frame.projection_point)
        return class_agreement(read[shown], self.seen.agents_of(self.frame)[shown], self.frame.labels[shown])

    def _located_picture(self) -> bytes:
        memberships = self.insight.memberships
        if memberships is None:
            raise ValueError("this network has no located agents")
        agents = striking_columns(memberships)
        figure = new_figure(13.2, 2.6 * len(agents))
        for row, agent in enumerate(agents):
            view, own = divmod(agent, self.seen.assignment.shape[1])
            left, right = (figure.add_subplot(len(agents), 2, 2 * row + side) for side in (1, 2))
            self._draw_points(left, memberships[:, agent], f"how much each point reads of agent {agent}")
            self._draw_image(right, view, self.seen.assignment[view, own])
            right.set_title(f"where agent {agent} lies in the image", fontsize=9)
        return png_bytes(figure)

    def _query_picture(self) -> bytes:
        attention = self.insight.queries
        if attention is None:
            raise ValueError("this network has no queries that met an image's")
        looks, agents = attention.queries_to_agents, self.seen.assignment.shape[1]
        queries = striking_columns(attention.voxels, first=1)
        figure = new_figure(13.2, 2.6 * len(queries))
        for row, query in enumerate(queries):
            left, right = (figure.add_subplot(len(queries), 2, 2 * row + side) for side in (1, 2))
            self._draw_points(left, attention.voxels[:, query], f"attention of the points to 3D query {query}")
            if looks is None:
                self._draw_image(right, 0, None)
                right.set_title("the image (the queries attend to cells of its maps: no agents)", fontsize=9)
                continue
            self._draw_image(right, 0, np.tensordot(looks[query, :agents], self.seen.assignment[0], 1))
            first = looks[query].argsort()[::-1][:3]
            said = ", ".join(f"{agent} ({100 * looks[query, agent]:.0f} %)" for agent in first)
            right.set_title(f"where its agents lie in the image; most of all agents {said}", fontsize=9)
        return png_bytes(figure)

    def _draw_points(self, axes: "Axes", values: Float[np.ndarray, "points"], title: str) -> None:
        order = values.argsort()
        x, y = self.frame.points[order, 0], self.frame.points[order, 1]
        most = max(float(np.percentile(values, 98)), 1e-6)
        shown = axes.scatter(x, y, c=values[order], s=4, linewidths=0, cmap="viridis", vmin=0, vmax=most)
        axes.plot(0, 0, marker="^", color="black", markersize=6)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(f"{title}, from above (metres)", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.figure.colorbar(shown, ax=axes, shrink=0.85).ax.tick_params(labelsize=7)

    def _draw_image(self, axes: "Axes", view: int, heat: "Float[np.ndarray, 'rows columns'] | None") -> None:
        """The image of a view; over it ``heat``, on the cells of the grouping grid."""
        height, width = self.seen.pictures.shape[1:3]
        axes.imshow(self.seen.pictures[view])
        if heat is not None:
            right, bottom = width * heat.shape[1] / self.seen.extent[1], height * heat.shape[0] / self.seen.extent[0]
            axes.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, right, bottom, 0), interpolation="bilinear")
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))


def look_at_frame(run: "TrainedRun", domain: "Domain", position: int) -> FrameAttention | None:
    """What the network of ``run`` reads on one frame of ``domain``; None without agents, features or points."""
    from ...stages.predict.attention import attention_maps

    fusion = run.config.fusion
    if not (fusion.agent_tokens or fusion.interface) or domain.features is None:
        return None
    insight = attention_maps(run.network, domain, position)
    if insight is None:
        return None
    frame = domain.load(position)
    return FrameAttention(
        frame=frame, seen=see_images(run.config.extract, domain, domain.features, frame), insight=insight
    )


def striking_columns(values: Float[np.ndarray, "points columns"], count: int = SHOWN, first: int = 0) -> list[int]:
    """Columns from ``first`` on that differ most from point to point, no two of them alike."""
    centred = values - values.mean(0)
    spread = np.sqrt((centred**2).mean(0))
    chosen: list[int] = []
    for column in spread[first:].argsort()[::-1] + first:
        same = [_correlation(centred[:, column], centred[:, other]) for other in chosen]
        if max(same, default=0.0) < ALIKE:
            chosen.append(int(column))
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

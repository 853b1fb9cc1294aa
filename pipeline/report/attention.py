"""What the points of one frame read of the agents in its images: pictures, and agreement with the classes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer, UInt8

from ...cache.schema import ImageFeatures
from ...stages.datasets.frames import Frame
from ...stages.datasets.labels import IGNORE
from ...stages.extract.agents import AgentMaker
from ...stages.extract.images import PictureSource
from ...stages.extract.settings import ExtractSettings
from ...stages.predict.attention import AttentionMaps, attention_maps
from ...stages.train.domain import Domain
from ...stages.train.features import FeatureSource, identity_views
from ..runs import TrainedRun
from .figures import new_figure, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = [
    "AttentionKind",
    "FrameAttention",
    "FrameImages",
    "class_agreement",
    "dense_memberships",
    "frame_attention",
    "read_images",
    "striking_columns",
]

AttentionKind = Literal["located", "queries"]

SHOWN = 4
SIMILAR = 0.8  #: correlation over the points above which two columns show the same


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameImages:
    """The V images of a frame as stage one read them, their features and agents.

    ``assignment`` sums to 1 over the agents of a view. ``extent``: rows and columns of the grid that the image spans;
    the rest is padding.
    """

    pictures: UInt8[np.ndarray, "views height width 3"]
    stored: ImageFeatures
    assignment: Float[np.ndarray, "views agents rows columns"]
    extent: tuple[float, float]

    def agents_of(self, frame: Frame) -> Int64[np.ndarray, "points"]:
        """Returns the dominant agent at each point's pixel, numbered over all views; a point's last view counts."""
        agents = self.assignment.shape[1]
        u, v = frame.projection_uv.T
        winner = self.assignment.argmax(1)
        view = frame.projection_view
        row, column = (v * self.extent[0]).astype(int), (u * self.extent[1]).astype(int)
        found = np.zeros(len(frame.points), np.int64)
        found[frame.projection_point] = view * agents + winner[view, row, column]
        return found


def dense_memberships(
    assignment: Integer[np.ndarray, "views 4 rows columns"],
    membership: UInt8[np.ndarray, "views 4 rows columns"],
    agents: int,
) -> Float32[np.ndarray, "views agents rows columns"]:
    """Returns the stored memberships of each cell as a dense array: scaled to sum to 1, and 0 at all other agents."""
    views, _, rows, columns = assignment.shape
    weights = membership.astype(np.float32)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1)
    dense = np.zeros((views, agents, rows, columns), np.float32)
    view, _, row, column = np.ogrid[tuple(map(slice, assignment.shape))]
    np.add.at(dense, (view, assignment.astype(np.int64), row, column), weights)
    return dense


def read_images(settings: ExtractSettings, domain: Domain, features: FeatureSource, frame: Frame) -> FrameImages:
    """Reads the pictures, features and agent memberships of ``frame``.

    If the features were stored without memberships, the cells are grouped again as in stage one.
    """
    settings = settings.for_dataset(domain.index.dataset)
    rows = [int(row) for row in frame.image_rows]
    views = identity_views(frame, features)
    stored = features.read([row * len(features.views) + int(view) for row, view in zip(rows, views, strict=True)])
    pictures, _ = PictureSource(index=domain.index, image_size=settings.image_size, decoding=settings.decoding).read(
        rows
    )
    if features.grid is not None and stored.assignment is not None and stored.membership is not None:
        assignment = dense_memberships(stored.assignment, stored.membership, features.agents)
        extent = features.grid.extent
    else:
        assignment, extent = _group_again(settings, features, stored, pictures)
    return FrameImages(pictures=pictures.transpose(0, 2, 3, 1), stored=stored, assignment=assignment, extent=extent)


def _group_again(
    settings: ExtractSettings,
    features: FeatureSource,
    stored: ImageFeatures,
    pictures: UInt8[np.ndarray, "views 3 height width"],
) -> tuple[Float32[np.ndarray, "views agents rows columns"], tuple[float, float]]:
    """Returns the memberships as stage one computes them, and the extent of their grid."""
    import torch

    maker = AgentMaker(
        settings=settings.agents, specs=features.taps, image_size=settings.image_size, device=torch.device("cpu")
    )
    maps = {tap: torch.from_numpy(stored.maps[tap].astype(np.float32)) for tap in maker.specs}
    return maker(maps, torch.from_numpy(pictures)).assignment.numpy(), maker.grid.extent


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameAttention:
    """One frame, its images, and the attention of its points to the agents of these images.

    There are two kinds: "located", each point reads the agents that its pixels belong to, and "queries", its voxel
    attends to 3D queries that were refined by the image's.
    """

    frame: Frame
    images: FrameImages
    insight: AttentionMaps

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention that the network has."""
        located: tuple[AttentionKind, ...] = ("located",) if self.insight.memberships is not None else ()
        return (*located, "queries") if self.insight.queries is not None else located

    def picture(self, kind: AttentionKind) -> bytes:
        """Returns a PNG with four rows, an agent or 3D query each: its weight at the points, and its image region."""
        return self._located_picture() if kind == "located" else self._query_picture()

    def agreement(self, kind: AttentionKind) -> tuple[float, float] | None:
        """Returns the share of attention on agents of the point's own class, and that of uniform attention.

        Only points that an image shows count. None if none of them has a label, or queries attend to cells of maps.
        """
        weights = self.insight.memberships
        if kind == "queries":
            weights = None if self.insight.queries is None else self.insight.queries.voxels_to_agents
        if weights is None:
            return None
        shown = np.unique(self.frame.projection_point)
        return class_agreement(weights[shown], self.images.agents_of(self.frame)[shown], self.frame.labels[shown])

    def _located_picture(self) -> bytes:
        memberships = self.insight.memberships
        if memberships is None:
            raise ValueError("this network has no located agents")
        agents = striking_columns(memberships)
        figure = new_figure(13.2, 2.6 * len(agents))
        for row, agent in enumerate(agents):
            view, local = divmod(agent, self.images.assignment.shape[1])
            left, right = (figure.add_subplot(len(agents), 2, 2 * row + side) for side in (1, 2))
            self._draw_points(left, memberships[:, agent], f"how much each point reads of agent {agent}")
            self._draw_image(right, view, self.images.assignment[view, local])
            right.set_title(f"where agent {agent} lies in the image", fontsize=9)
        return png_bytes(figure)

    def _query_picture(self) -> bytes:
        attention = self.insight.queries
        if attention is None:
            raise ValueError("this network has no queries refined by an image's")
        weights, agents = attention.queries_to_agents, self.images.assignment.shape[1]
        queries = striking_columns(attention.voxels, first=1)
        figure = new_figure(13.2, 2.6 * len(queries))
        for row, query in enumerate(queries):
            left, right = (figure.add_subplot(len(queries), 2, 2 * row + side) for side in (1, 2))
            self._draw_points(left, attention.voxels[:, query], f"attention of the points to 3D query {query}")
            if weights is None:
                self._draw_image(right, 0, None)
                right.set_title("the image (the queries attend to cells of its maps: no agents)", fontsize=9)
                continue
            self._draw_image(right, 0, np.tensordot(weights[query, :agents], self.images.assignment[0], 1))
            first = weights[query].argsort()[::-1][:3]
            strongest = ", ".join(f"{agent} ({100 * weights[query, agent]:.0f} %)" for agent in first)
            right.set_title(f"where its agents lie in the image; most of all agents {strongest}", fontsize=9)
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
        """Draws the image of a view, and over it ``heat`` [rows, columns] on the cells of the grouping grid."""
        height, width = self.images.pictures.shape[1:3]
        axes.imshow(self.images.pictures[view])
        if heat is not None:
            right, bottom = (
                width * heat.shape[1] / self.images.extent[1],
                height * heat.shape[0] / self.images.extent[0],
            )
            axes.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, right, bottom, 0), interpolation="bilinear")
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))


def frame_attention(run: TrainedRun, domain: Domain, position: int) -> FrameAttention | None:
    """Returns the attention of ``run`` on one frame of ``domain``; None without agents, features or points."""
    fusion = run.config.fusion
    if not (fusion.agent_tokens or fusion.interface) or domain.features is None:
        return None
    insight = attention_maps(run.network, domain, position)
    if insight is None:
        return None
    frame = domain.load(position)
    return FrameAttention(
        frame=frame, images=read_images(run.config.extract, domain, domain.features, frame), insight=insight
    )


def striking_columns(values: Float[np.ndarray, "points columns"], count: int = SHOWN, first: int = 0) -> list[int]:
    """Returns the columns from ``first`` on that vary most over the points, without columns similar to others."""
    centred = values - values.mean(0)
    spread = np.sqrt((centred**2).mean(0))
    chosen: list[int] = []
    for column in spread[first:].argsort()[::-1] + first:
        similarities = [_correlation(centred[:, column], centred[:, other]) for other in chosen]
        if max(similarities, default=0.0) < SIMILAR:
            chosen.append(int(column))
        if len(chosen) == count:
            break
    return chosen


def class_agreement(
    attention: Float[np.ndarray, "points agents"],
    agents_of_points: Int64[np.ndarray, "points"],
    labels: Int64[np.ndarray, "points"],
) -> tuple[float, float] | None:
    """Returns the share of labelled points' attention on agents of their own class, and that of uniform attention.

    An agent's class is that of most labelled points at whose pixels it dominates; agents without such points are
    excluded. Both shares are means over the present classes of the means over their points; None without labels.
    """
    labelled = labels != IGNORE
    if not labelled.any():
        return None
    labels = labels[labelled]
    counts = np.zeros((attention.shape[1], int(labels.max()) + 1), np.int64)
    np.add.at(counts, (agents_of_points[labelled], labels), 1)
    known = counts.sum(1) > 0
    agent_classes = counts.argmax(1)[known]
    weights = attention[labelled][:, known]
    weights = weights / np.maximum(weights.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    present = np.unique(labels)
    shares = [weights[labels == name][:, agent_classes == name].sum(1).mean() for name in present]
    uniform = [(agent_classes == name).mean() for name in present]
    return float(np.mean(shares)), float(np.mean(uniform))


def _correlation(one: Float[np.ndarray, "points"], other: Float[np.ndarray, "points"]) -> float:
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale > 0 else 1.0

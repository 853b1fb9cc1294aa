"""What stage one kept of the images of a frame: pictures, feature maps, and which agent claims which cell."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer, UInt8

if TYPE_CHECKING:
    from ...cache.schema import ImageFeatures
    from ...stages.datasets.frames import Frame
    from ...stages.extract.settings import ExtractSettings
    from ...stages.train.domain import Domain
    from ...stages.train.features import FeatureSource

__all__ = ["SeenImages", "dense_memberships", "see_images"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenImages:
    """The V images of a frame as the diffusion model saw them; ``assignment`` sums to 1 over the agents of a view.

    ``extent``: rows and columns of the grid that the image spans; what lies beyond is padding.
    """

    pictures: UInt8[np.ndarray, "views height width 3"]
    stored: "ImageFeatures"
    assignment: Float[np.ndarray, "views agents rows columns"]
    extent: tuple[float, float]

    def agents_of(self, frame: "Frame") -> Int64[np.ndarray, "points"]:
        """The agent that claims the cell of each point's pixel, counted over all views; a point's last view wins."""
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
    """The kept memberships of each cell at their agents, scaled to sum to 1, and 0 at all others."""
    views, _, rows, columns = assignment.shape
    weights = membership.astype(np.float32)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1)
    dense = np.zeros((views, agents, rows, columns), np.float32)
    view, _, row, column = np.ogrid[tuple(map(slice, assignment.shape))]
    np.add.at(dense, (view, assignment.astype(np.int64), row, column), weights)
    return dense


def see_images(settings: "ExtractSettings", domain: "Domain", features: "FeatureSource", frame: "Frame") -> SeenImages:
    """Read the pictures and features of ``frame``, and the memberships of the cells in its agents.

    Where the features come without memberships, the cells are grouped again as stage one did.
    """
    from ...stages.extract.images import PictureSource
    from ...stages.train.features import identity_views

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
        assignment, extent = _grouped_again(settings, features, stored, pictures)
    return SeenImages(pictures=pictures.transpose(0, 2, 3, 1), stored=stored, assignment=assignment, extent=extent)


def _grouped_again(
    settings: "ExtractSettings",
    features: "FeatureSource",
    stored: "ImageFeatures",
    pictures: UInt8[np.ndarray, "views 3 height width"],
) -> tuple[Float32[np.ndarray, "views agents rows columns"], tuple[float, float]]:
    """Memberships as stage one computed them, and the extent of their grid."""
    import torch

    from ...stages.extract.agents import AgentMaker

    maker = AgentMaker(
        settings=settings.agents, specs=features.taps, image_size=settings.image_size, device=torch.device("cpu")
    )
    maps = {tap: torch.from_numpy(stored.maps[tap].astype(np.float32)) for tap in settings.diffusion_taps}
    return maker(maps, torch.from_numpy(pictures)).assignment.numpy(), maker.grid.extent

"""What stage one kept of the images of a frame: pictures, feature maps, and which agent claims which cell."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64, UInt8

if TYPE_CHECKING:
    from ...cache.schema import ImageFeatures
    from ...stages.datasets.frames import Frame
    from ...stages.extract.settings import ExtractSettings
    from ...stages.train.domain import Domain
    from ...stages.train.source import FeatureSource

__all__ = ["SeenImages", "see_images"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenImages:
    """The V images of a frame as the diffusion model saw them; ``assignment`` sums to 1 over the agents of a view."""

    pictures: UInt8[np.ndarray, "views height width 3"]
    stored: "ImageFeatures"
    assignment: Float[np.ndarray, "views agents rows columns"]

    def agents_of(self, frame: "Frame") -> Int64[np.ndarray, "points"]:
        """The agent that claims the cell of each point's pixel, counted over all views; a point's last view wins."""
        _, agents, rows, columns = self.assignment.shape
        u, v = frame.projection_uv.T
        winner = self.assignment.argmax(1)
        view = frame.projection_view
        found = np.zeros(len(frame.points), np.int64)
        found[frame.projection_point] = view * agents + winner[view, (v * rows).astype(int), (u * columns).astype(int)]
        return found


def see_images(settings: "ExtractSettings", domain: "Domain", features: "FeatureSource", frame: "Frame") -> SeenImages:
    """Read the pictures and features of ``frame``, and group the cells into agents again as stage one did."""
    import torch

    from ...stages.extract.agents import AgentMaker
    from ...stages.extract.extractor import PictureSource
    from ...stages.train.views import identity_views

    settings = settings.for_dataset(domain.index.dataset)
    rows = [int(row) for row in frame.image_rows]
    views = identity_views(frame, features)
    stored = features.read([row * len(features.views) + int(view) for row, view in zip(rows, views, strict=True)])
    pictures, _ = PictureSource(index=domain.index, image_size=settings.image_size).read(rows)
    device = torch.device("cpu")
    maker = AgentMaker(settings=settings.agents, specs=features.taps, image_size=settings.image_size, device=device)
    maps = {tap: torch.from_numpy(stored.maps[tap].astype(np.float32)) for tap in settings.diffusion_taps}
    assignment = maker(maps, torch.from_numpy(pictures)).assignment.numpy()
    return SeenImages(pictures=pictures.transpose(0, 2, 3, 1), stored=stored, assignment=assignment)

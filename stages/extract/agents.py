"""Object agent queries without training: soft k-means groups the pixels of an image, and each group is summarised.

A pixel's vector joins its taps (each channel normalised over the image, then each pixel scaled to unit length), its
position and its colour; the similarity of two pixels is the weighted mean of their cosines. Position and colour enter
as points on circles (sine and cosine of an angle), so that they too have unit length. Everything is a batched matrix
product on the model's device, in float32. ``docs/agents.md`` says how the settings were chosen.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from ...cache.schema import TapSpec
from ...errors import ConfigError
from .images import FeatureMaps
from .pixels import (
    PixelVectors,
    cell_bounds,
    colour_vectors,
    overlap_matrix,
    position_vectors,
    resize_matrix,
    sample_matrix,
    seed_points,
    tap_vectors,
)
from .settings import AgentSettings

__all__ = ["EMPTY_MASS", "AgentMaker", "Agents", "grid_tap"]

SEED_CHOICE = 4  #: points that each of the distinct seeds is chosen from
EMPTY_MASS = 2.0**-24  #: an agent with less than this share of the image is empty (a hundredth of a pixel)


@dataclass(frozen=True, kw_only=True)
class Agents:
    """The N agents of a batch of B images, float32.

    ``queries``: tap -> [B, N, C], the mean feature of each agent; ``geometry`` [B, N, 5]: mass (share of image, sums
    to 1), centre (u, v) and standard deviation (su, sv) in image fractions; ``assignment`` [B, N, h, w]: membership of
    each cell of the grouping grid, sums to 1 over agents. The query and geometry of an empty agent are zeros.
    """

    queries: Mapping[str, Float[Tensor, "batch agents _channels"]]
    geometry: Float[Tensor, "batch agents 5"]
    assignment: Float[Tensor, "batch agents height width"]


def grid_tap(settings: AgentSettings, specs: Mapping[str, TapSpec]) -> str:
    """Returns the tap whose grid the grouping runs on: the chosen one, else the finest (the first of equals).

    Raises:
        ConfigError: the settings name a tap that is not in ``specs``, or leave no tap to group by.
    """
    maps = [name for name, spec in specs.items() if spec.dtype != "uint8"]
    if faults := settings.tap_faults(maps):
        raise ConfigError("; ".join(f"extract.{fault}" for fault in faults))
    return settings.grid or max(maps, key=lambda name: math.prod(specs[name].extent))


class AgentMaker:
    """Makes the agents of images whose maps have the shapes in ``specs`` (``rgb`` is ignored).

    ``image_size`` is (height, width) in pixels of the pictures handed in beside the maps.

    Raises:
        ConfigError: the settings name a tap that is not in ``specs``, or leave no tap to group by.
    """

    def __init__(
        self,
        *,
        settings: AgentSettings,
        specs: Mapping[str, TapSpec],
        image_size: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.device = device
        self.specs = {name: spec for name, spec in specs.items() if spec.dtype != "uint8"}
        self.grid = grid = self.specs[grid_tap(settings, specs)]
        rows, columns = _bounds(grid)
        self._areas = {name: self._tensor(_cell_areas(spec)) for name, spec in self.specs.items()}
        self._area = self._tensor(_cell_areas(grid)).flatten()
        self._places = self._tensor(_cell_moments(rows, columns))
        self._position = self._tensor(position_vectors(rows.mean(1), columns.mean(1), image_size))
        distinct = settings.seeds == "distinct"
        points = seed_points(settings.count * (SEED_CHOICE if distinct else 1), *image_size)
        down = sample_matrix(points[:, 1], grid.height, grid.extent[0])
        across = sample_matrix(points[:, 0], grid.width, grid.extent[1])
        self._seeds = self._tensor(down[:, :, None] * across[:, None, :]).flatten(1).unsqueeze(0)
        shrink = (
            self._tensor(resize_matrix(cells, extent, side, float(side)))
            for cells, extent, side in zip((grid.height, grid.width), grid.extent, image_size, strict=True)
        )
        self._shrink = (next(shrink), next(shrink))
        self._resize = {name: self._pair(resize_matrix, grid, spec) for name, spec in self.specs.items()}
        self._pool = {name: self._pair(overlap_matrix, spec, grid) for name, spec in self.specs.items()}

    def __call__(
        self,
        maps: FeatureMaps,
        pictures: UInt8[Tensor, "batch 3 image_height image_width"],
    ) -> Agents:
        """Groups the pixels of each image and summarises the groups; ``maps`` holds every tap but ``rgb``, float32."""
        pixels = self.pixel_vectors(maps, pictures)
        assignment = self.assign(pixels, self.centres(pixels))
        shares = assignment * self._area
        mass = shares.sum(dim=2, keepdim=True)
        full = mass >= EMPTY_MASS
        weights = torch.where(full, shares / mass.clamp_min(EMPTY_MASS), torch.zeros_like(shares))
        grid = assignment.reshape(*mass.shape[:2], self.grid.height, self.grid.width)
        queries = {name: self._pooled(name, grid, maps[name], mass, full) for name in self.specs}
        return Agents(queries=queries, geometry=self._geometry(weights, mass, full), assignment=grid)

    def pixel_vectors(
        self,
        maps: FeatureMaps,
        pictures: UInt8[Tensor, "batch 3 image_height image_width"],
    ) -> PixelVectors:
        """Joins what each cell of the grid is grouped by into one vector of unit length."""
        settings = self.settings
        parts: list[tuple[float, Tensor, tuple[Tensor, Tensor] | None]] = []
        if settings.assign != "rgb":
            weight = {name: settings.weight_of(name) for name in self.specs}
            total = sum(weight.values())
            parts += [
                (
                    weight[name] / total,
                    tap_vectors(maps[name], self._areas[name]),
                    None if spec.extent == self.grid.extent else self._resize[name],
                )
                for name, spec in self.specs.items()
                if weight[name] > 0
            ]
        if settings.assign != "features":
            colour_weight = 1.0 if settings.assign == "rgb" else settings.rgb_weight
            parts.append((colour_weight, colour_vectors(pictures, self._shrink), None))
        parts.append((settings.position_weight, self._position.expand(len(pictures), -1, -1, -1), None))
        return PixelVectors(parts)

    def centres(self, pixels: PixelVectors) -> Float[Tensor, "batch agents joint"]:
        """Runs soft k-means (cosine similarity) from the seeds; returns the centres for the last assignment.

        An agent left without pixels keeps its centre.
        """
        centres = normalize(pixels.sums(self._seeds), dim=2)
        if self.settings.seeds == "distinct":
            centres = _distinct(centres, self.settings.count)
        for _ in range(self.settings.rounds - 1):
            assignment = self.assign(pixels, centres)
            means = pixels.sums(assignment, self._area)
            length = means.norm(dim=2, keepdim=True)
            centres = torch.where(length >= EMPTY_MASS, means / length.clamp_min(EMPTY_MASS), centres)
        return centres

    def assign(
        self, pixels: PixelVectors, centres: Float[Tensor, "batch agents joint"]
    ) -> Float[Tensor, "batch agents cells"]:
        """The membership of each cell in each of ``centres``; sums to 1 over agents."""
        return torch.softmax(pixels.similarity(centres / self.settings.temperature), dim=1)

    def _pooled(self, name: str, grid: Tensor, features: Tensor, mass: Tensor, full: Tensor) -> Tensor:
        """Mean of a tap over each agent, weighted by the area its cells share with the agent's cells."""
        down, across = self._pool[name]
        pooled = (down @ grid @ across.T).flatten(2)
        means = pooled @ features.flatten(2).transpose(1, 2) / mass.clamp_min(EMPTY_MASS)
        return torch.where(full, means, torch.zeros_like(means))

    def _geometry(self, weights: Tensor, mass: Tensor, full: Tensor) -> Tensor:
        centre = weights @ self._places[:, :2]
        spread = (self._places[:, :2] - centre[:, :, None]).square() + self._places[:, 2:]
        deviation = (weights[:, :, None] @ spread).squeeze(2).sqrt()
        geometry = torch.cat([mass, centre, deviation], dim=2)
        return torch.where(full, geometry, torch.zeros_like(geometry))

    def _pair(self, matrix: Callable[..., np.ndarray], to: TapSpec, source: TapSpec) -> tuple[Tensor, Tensor]:
        """Builds the matrices for rows and columns that carry a map from one tap's grid to another's."""
        rows = matrix(to.height, to.extent[0], source.height, source.extent[0])
        columns = matrix(to.width, to.extent[1], source.width, source.extent[1])
        return self._tensor(rows), self._tensor(columns)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, torch.float32)


def _distinct(vectors: Float[Tensor, "batch points joint"], count: int) -> Float[Tensor, "batch agents joint"]:
    """Chooses ``count`` points: the one most like all others, then always the one least like those chosen; in order."""
    similarity = vectors @ vectors.transpose(1, 2)
    rows = torch.arange(len(vectors), device=vectors.device)
    chosen = [similarity.sum(dim=2).argmax(dim=1)]
    nearest = similarity[rows, chosen[0]]
    for _ in range(count - 1):
        chosen.append(nearest.argmin(dim=1))
        nearest = torch.maximum(nearest, similarity[rows, chosen[-1]])
    places = torch.stack(chosen, dim=1).sort(dim=1).values
    return vectors[rows[:, None], places]


def _bounds(spec: TapSpec) -> tuple[np.ndarray, np.ndarray]:
    return cell_bounds(spec.height, spec.extent[0]), cell_bounds(spec.width, spec.extent[1])


def _cell_areas(spec: TapSpec) -> np.ndarray:
    """Share of the image that each cell of a tap covers: [h, w]."""
    rows, columns = _bounds(spec)
    return np.outer(rows[:, 1] - rows[:, 0], columns[:, 1] - columns[:, 0])


def _cell_moments(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Centre (u, v) and variance (u, v) of each cell of the grid, row by row: [cells, 4]."""
    v, u = np.meshgrid(rows.mean(1), columns.mean(1), indexing="ij")
    tall, wide = np.meshgrid(rows[:, 1] - rows[:, 0], columns[:, 1] - columns[:, 0], indexing="ij")
    return np.stack([u, v, wide**2 / 12, tall**2 / 12], axis=-1).reshape(-1, 4)

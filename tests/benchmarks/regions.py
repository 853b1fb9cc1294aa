"""Pictures cut into N regions, what the regions hold, and what a probe makes of them.

A picture's regions are a map [225, 400] of numbers 0 to N - 1. Equal cells, k-means and SLIC cut pixels; agents cut the
cells of their grouping grid, whose memberships are read at the pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from skimage.segmentation import slic
from streets import CLASSES, SIZE, fit, miou, normalised
from torch import Tensor
from xd3d.cache.schema import TapSpec
from xd3d.stages.datasets.labels import IGNORE
from xd3d.stages.extract.agents import AgentMaker
from xd3d.stages.extract.pixels import sample_matrix, seed_points
from xd3d.stages.extract.settings import AgentSettings

ROUNDS = 10  # of k-means on colours, as many as the agents' own


def equal_cells(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Cut a picture into ``count`` cells of about square shape, centred on the seeds of the agents."""
    seeds = seed_points(count, *size)
    rows = np.unique(seeds[:, 1])
    first = np.searchsorted(seeds[:, 1], rows)
    columns = np.diff([*first, count])
    row = np.arange(size[0]) * len(rows) // size[0]
    return first[row][:, None] + np.arange(size[1])[None] * columns[row][:, None] // size[1]


def slic_regions(image: np.ndarray, count: int, compactness: float) -> np.ndarray:
    """SLIC superpixels, as near to ``count`` as its request allows (it gives fewer or more than it is asked for)."""
    best, wanted = None, float(count)
    for _ in range(3):
        found = slic(image, n_segments=round(wanted), compactness=compactness, start_label=0)
        number = int(found.max()) + 1
        if best is None or abs(number - count) < abs(int(best.max()) + 1 - count):
            best = found
        if number == count:
            break
        wanted *= count / number
    return best


def colour_regions(image: np.ndarray, count: int, position_weight: float) -> np.ndarray:
    """k-means on RGB and position (in longer sides, times ``position_weight``) from the seeds of the agents."""
    height, width = image.shape[:2]
    v, u = np.meshgrid((np.arange(height) + 0.5) / width, (np.arange(width) + 0.5) / width, indexing="ij")
    pixels = np.concatenate([image / 255.0, position_weight * np.stack([u, v], -1)], 2).reshape(-1, 5)
    pixels = torch.from_numpy(pixels).float()
    blocks = pixels.split(4096)  # products of this many pixels stay in the processor's cache
    seeds = seed_points(count, height, width)
    rows, columns = (seeds[:, 1] * height).astype(int), (seeds[:, 0] * width).astype(int)
    centres = pixels[rows * width + columns]
    for _ in range(ROUNDS):
        half = centres.square().sum(1) / 2
        nearest = torch.cat([(block @ centres.T - half).argmax(1) for block in blocks])
        sums = torch.zeros_like(centres).index_add_(0, nearest, pixels)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return nearest.view(height, width).numpy()


def agent_regions(
    settings: AgentSettings, specs: Mapping[str, TapSpec], maps: Mapping[str, Tensor], images: np.ndarray
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Agents of every picture: their regions [n, 225, 400], and their queries tap -> [n, N, C]."""
    maker = AgentMaker(settings=settings, specs=specs, image_size=SIZE, device=torch.device("cpu"))
    regions, queries = [], []
    for row, image in enumerate(images):
        picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        agents = maker({tap: values[row : row + 1].float() for tap, values in maps.items()}, picture)
        regions.append(strongest(agents.assignment[0], maker.grid))
        queries.append(agents.queries)
    return np.stack(regions), {tap: torch.cat([one[tap] for one in queries]) for tap in maps}


def strongest(assignment: Tensor, grid: TapSpec, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The agent each pixel belongs to most: memberships [N, h, w] read bilinearly at the pixels' centres."""
    down, across = (
        torch.from_numpy(sample_matrix((np.arange(side) + 0.5) / side, cells, extent)).float()
        for side, cells, extent in zip(size, (grid.height, grid.width), grid.extent, strict=True)
    )
    return (down @ assignment @ across.T).argmax(0).numpy()


def on_grid(regions: np.ndarray, grid: TapSpec) -> np.ndarray:
    """Coarsen regions [n, 225, 400]: every cell of the grid belongs as a whole to the region at its middle."""
    middle = [
        np.minimum(((np.arange(cells) + 0.5) / extent * side).astype(int), side - 1)
        for cells, extent, side in zip((grid.height, grid.width), grid.extent, SIZE, strict=True)
    ]
    cells = regions[:, middle[0][:, None], middle[1]].reshape(len(regions), -1)
    return cells[:, _cell_of_pixel(grid)].reshape(regions.shape)


def pooled(
    regions: np.ndarray, count: int, specs: Mapping[str, TapSpec], maps: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean of every tap over every region, each pixel taking the value of the cell it lies in: tap -> [n, N, C]."""
    queries = {}
    for tap, values in maps.items():
        cell = _cell_of_pixel(specs[tap])
        number = specs[tap].height * specs[tap].width
        rows = []
        for labels, features in zip(regions, values, strict=True):
            shares = np.bincount(labels.ravel() * number + cell, minlength=count * number).reshape(count, number)
            weights = torch.from_numpy(shares / np.maximum(shares.sum(1, keepdims=True), 1)).float()
            rows.append(weights @ features.float().flatten(1).T)
        queries[tap] = torch.stack(rows)
    return queries


def _cell_of_pixel(spec: TapSpec) -> np.ndarray:
    down, across = (
        np.floor((np.arange(side) + 0.5) / side * extent).astype(int)
        for side, extent in zip(SIZE, spec.extent, strict=True)
    )
    return (down[:, None] * spec.width + across).ravel()


@dataclass(frozen=True, kw_only=True)
class Regions:
    """The R regions of all pictures of a domain that hold a labelled pixel.

    ``vectors`` [R, C]: query vectors, all taps joined, normalised per image as training does; ``pixels`` [R, classes]:
    labelled pixels of each class.
    """

    vectors: Tensor
    pixels: Tensor

    @classmethod
    def of(
        cls,
        regions: np.ndarray,
        queries: Mapping[str, Tensor],
        labels: np.ndarray,
        specs: Mapping[str, TapSpec],
        maps: Mapping[str, Tensor],
    ) -> "Regions":
        """Gather the regions [n, 225, 400] of n pictures with their queries and labels."""
        pixels = class_pixels(regions, labels, next(iter(queries.values())).shape[1])
        normal = normalised(specs, maps, queries).agents
        vectors = torch.cat([normal[tap].flatten(0, 1) for tap in specs], 1)
        full = pixels.sum(1) > 0
        return cls(vectors=vectors[full], pixels=pixels[full])


def class_pixels(regions: np.ndarray, labels: np.ndarray, count: int) -> Tensor:
    """Labelled pixels of each class in each of ``count`` regions of n pictures: [n * count, classes]."""
    found = []
    for cut, classes in zip(regions, labels, strict=True):
        known = classes != IGNORE
        one = np.bincount(cut[known] * CLASSES + classes[known], minlength=count * CLASSES)
        found.append(torch.from_numpy(one.reshape(count, CLASSES)))
    return torch.cat(found)


def painted(pixels: Tensor, guesses: Tensor) -> float:
    """mIoU in percent over labelled pixels [R, classes], every pixel taking the class guessed for its region."""
    classes = torch.arange(CLASSES).repeat(len(guesses))
    return miou(guesses.repeat_interleave(CLASSES), classes, pixels.flatten())


def achievable(pixels: Tensor) -> float:
    """mIoU in percent where every pixel takes the most frequent class of its region."""
    return painted(pixels, pixels.argmax(1))


def probe_scores(train: Regions, tests: Mapping[str, Regions], seed: int) -> dict[str, tuple[float, float]]:
    """Fit a probe to the regions of ``train`` and score it on others: domain -> mIoU over pixels and over regions.

    A region counts as many times as it has labelled pixels in fitting, and once in the mIoU over regions.
    """
    probe = fit(train.vectors, train.pixels.argmax(1), seed, train.pixels.sum(1).float())
    scores = {}
    for domain, regions in tests.items():
        guesses = probe.classes(regions.vectors)
        scores[domain] = (painted(regions.pixels, guesses), miou(guesses, regions.pixels.argmax(1)))
    return scores

"""Labelled pictures of the synthetic cities by domain, the taps a model reads from them, and a linear probe.

Shared by the benchmarks of features: the pixels of a picture, its classes of ``nuscenes-6``, and every tap as stage one
computes it. Pictures come from streets of their own: no other part of the project draws these world numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from xd3d.cache.schema import TapSpec
from xd3d.files import write_atomic
from xd3d.progress import progress
from xd3d.stages.datasets.labels import get_merge
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.settings import ExtractSettings
from xd3d.stages.extract.taps import tap_specs
from xd3d.stages.synthesize.camera import CameraModel, Picture, camera_pose, render
from xd3d.stages.synthesize.style_sampling import city_style, draw_light, random_style
from xd3d.stages.synthesize.styles import Hour, Style, Weather
from xd3d.stages.synthesize.world import World
from xd3d.stages.train.images import ImageBatch
from xd3d.stages.train.ragged import Ragged

SIZE = (225, 400)
SUPERSAMPLING = 2  # the synthetic data root is rendered at 800 x 450 and shrunk by stage one
CLASSES = 6
TAPS = ("up0", "up1", "up2", "up3")
DOMAINS: dict[str, tuple[str, Hour, Weather]] = {
    "boston day": ("boston", "day", "clear"),
    "singapore day": ("singapore", "day", "clear"),
    "boston night": ("boston", "night", "clear"),
    "boston fog": ("boston", "day", "fog"),
    "singapore night": ("singapore", "night", "clear"),
}
#: Shifts on which settings are chosen and nothing is reported: rain at dusk, and towns of neither city by day.
DEVELOPMENT = ("boston rain at dusk", "other towns")
PHOTO_QUALITY = 90  # of JPEG: about as many bytes a picture as nuScenes has
MODELS = {
    "trained": ("tiny-street", "pretrained"),
    "random": ("tiny-street", "random"),
    "day-only": ("tiny-street-day", "pretrained"),
}


def domain_style(domain: str, rng: np.random.Generator) -> Style:
    """Draw what a street of ``domain`` looks like."""
    if domain == "other towns":
        return random_style(rng, day_only=True)
    if domain == "boston rain at dusk":
        return replace(city_style("boston", rng=rng), light=draw_light(rng, "dusk", "rain"))
    location, hour, weather = DOMAINS[domain]
    return city_style(location, hour=hour, weather=weather, rng=rng)


def city_picture(domain: str, number: int) -> Picture:
    """Render one street of a domain at 225 x 400; every number is a world of its own."""
    rng = np.random.default_rng((99, [*DOMAINS, *DEVELOPMENT].index(domain), number))
    style = domain_style(domain, rng)
    world = World(style, 5_000_000 + number, length=200.0)
    distance = rng.uniform(0.0, 200.0)
    x, y, yaw = world.lane_pose(distance)
    height, width = SIZE
    camera = CameraModel.from_field_of_view(
        width=width * SUPERSAMPLING, height=height * SUPERSAMPLING, degrees=style.imaging.field_of_view
    )
    pose = camera_pose(x, y, yaw, height=1.5, pitch=0.01)
    picture = render(world, camera, pose, distance / world.cruise_speed, rng)
    image = np.asarray(Image.fromarray(picture.image).resize((width, height), Image.Resampling.BILINEAR))
    return Picture(image, picture.labels[1::2, 1::2], picture.depth[1::2, 1::2])


def photo(number: int, width: int, height: int) -> Image.Image:
    """A street with the noise of a sensor, of whatever size; as JPEG or PNG about as many bytes as a camera's."""
    picture = np.asarray(Image.fromarray(city_picture("boston day", number).image).resize((width, height)), np.int16)
    noisy = picture + np.random.default_rng(number).normal(0, 3, picture.shape).astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Streets:
    """n pictures of one domain: ``images`` [n, 225, 400, 3] uint8 and ``labels`` [n, 225, 400], a class or IGNORE."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def rendered(cls, domain: str, numbers: Sequence[int], folder: Path) -> "Streets":
        """Render the pictures, or read them from ``folder`` where an earlier run left them."""
        file = folder / f"{domain} {numbers[0]}-{numbers[-1]}.npz".replace(" ", "-")
        if not file.is_file():
            with progress(f"rendering {domain}", len(numbers), "picture", 0) as bar:
                pictures = []
                for number in numbers:
                    pictures.append(city_picture(domain, number))
                    bar.update(1)
            merge = get_merge("nuscenes-6")
            labels = [merge.apply(picture.labels.ravel()).reshape(SIZE) for picture in pictures]
            arrays = {"images": np.stack([p.image for p in pictures]), "labels": np.stack(labels).astype(np.int16)}
            write_atomic(file, lambda stream: np.savez_compressed(stream, **arrays))
        with np.load(file) as found:
            return cls(images=found["images"], labels=found["labels"].astype(np.int64))


def settings_of(model: str) -> ExtractSettings:
    """One of ``MODELS`` with all four taps."""
    name, weights = MODELS[model]
    return ExtractSettings(model=name, weights=weights, taps=TAPS, dtype="float32", device="cpu")


@cache
def specs_of(model: str) -> dict[str, TapSpec]:
    """Shapes of the taps of one of ``MODELS``."""
    settings = settings_of(model)
    return tap_specs(settings_model(settings), settings)


@cache
def backbone(model: str) -> DiffusionBackbone:
    """Load one of ``MODELS``."""
    settings = settings_of(model)
    return DiffusionBackbone(model=settings_model(settings), settings=settings, device=torch.device("cpu"))


def tap_maps(model: str, images: np.ndarray, file: Path) -> dict[str, Tensor]:
    """Every tap of every picture as the cache stores it, tap -> [n, C, h, w] float16; kept in ``file``."""
    if not file.is_file():
        found: list[dict[str, np.ndarray]] = []
        with progress(f"{model} taps", len(images), "picture", 0) as bar:
            for row, image in enumerate(images):
                maps = backbone(model)(torch.from_numpy(image.copy()).permute(2, 0, 1)[None], [str(row)])
                found.append({tap: maps[tap][0].half().numpy() for tap in TAPS})
                bar.update(1)
        arrays = {tap: np.stack([maps[tap] for maps in found]) for tap in TAPS}
        write_atomic(file, lambda stream: np.savez(stream, **arrays))
    with np.load(file) as stored:
        return {tap: torch.from_numpy(stored[tap]) for tap in TAPS}


def normalised(
    specs: Mapping[str, TapSpec],
    maps: Mapping[str, Tensor],
    agents: Mapping[str, Tensor],
    scales: Mapping[str, Tensor] | None = None,
) -> ImageBatch:
    """Maps [n, C, h, w] and agents [n, N, C] of n images as a network reads them by default."""
    views, count = len(next(iter(maps.values()))), next(iter(agents.values())).shape[1]
    none = torch.zeros(0, dtype=torch.int64)
    return ImageBatch(
        specs=specs,
        maps=maps,
        agents=agents,
        geometry=torch.zeros(views, count, 5),
        sample=torch.arange(views),
        camera=torch.zeros(views, dtype=torch.int64),
        projection_point=none,
        projection_view=none,
        projection_uv=torch.zeros(0, 2),
        view_counts=none,
        layout=Ragged.of(torch.arange(views), views),
        scales=scales or {},
    ).prepared(normalise=True)


@dataclass(frozen=True)
class Probe:
    """A linear classifier with the mean and deviation of the features it was fitted to."""

    linear: torch.nn.Linear
    mean: Tensor
    deviation: Tensor

    def inputs(self, features: Tensor) -> Tensor:
        """Standardise features [n, C]."""
        return ((features - self.mean) / self.deviation).clamp(-8, 8)

    @torch.no_grad()
    def classes(self, features: Tensor) -> Tensor:
        """Most likely class of features [n, C]."""
        return self.linear(self.inputs(features)).argmax(1)


def fit(features: Tensor, labels: Tensor, seed: int, weights: Tensor | None = None) -> Probe:
    """Fit a linear classifier to features [n, C] and classes [n]; rows are drawn in proportion to ``weights``."""
    torch.manual_seed(seed)
    mean, deviation = features.mean(0), features.std(0) + 1e-5
    probe = torch.nn.Linear(features.shape[1], CLASSES)
    fitted = Probe(probe, mean, deviation)
    inputs = fitted.inputs(features)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=300)
    for _ in range(300):
        if weights is None:
            rows = torch.randint(len(inputs), (2048,))
        else:
            rows = torch.multinomial(weights, 2048, replacement=True)
        loss = functional.cross_entropy(probe(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return fitted


def miou(guesses: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean IoU in percent over the classes that occur in guesses or labels; each entry counts ``weights`` times."""
    confusion = torch.bincount(
        labels * CLASSES + guesses, None if weights is None else weights.double(), minlength=CLASSES**2
    )
    confusion = confusion.view(CLASSES, CLASSES).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return 100 * float((confusion.diag() / union)[union > 0].mean())

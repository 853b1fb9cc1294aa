"""From pictures to features: the backbone and the agents together, and the reading of pictures from an index.

The job that fills the cache, the forecast and the online source all go through here, so they agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from ...cache.schema import ImageFeatures, TapSpec
from ...cache.views import IDENTITY, split_row, view_key
from ...errors import BackendError, DataError, MissingDataError
from ..datasets.index import FrameIndex
from .agents import AgentMaker
from .backbone import DiffusionBackbone
from .clock import StageClock
from .images import load_image
from .models import settings_model
from .precision import choose_device
from .settings import RGB, ExtractSettings
from .views import apply_view

__all__ = ["FeatureExtractor", "PictureSource"]

GPU_BATCH = 8  #: images a batch on a GPU, where none is set


class FeatureExtractor:
    """The frozen model with its agents, loaded once.

    ``specs``: tap -> shape and place of its map; ``batch_size``: how many pictures to hand in at once; ``clock``: the
    seconds that the model and the agents took.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        BackendError: CUDA is asked for and there is none.
    """

    def __init__(self, *, settings: ExtractSettings) -> None:
        self.settings = settings
        self.clock = StageClock()
        device = _device(settings)
        model = settings_model(settings)
        self.batch_size = settings.batch_size or (1 if device.type == "cpu" else GPU_BATCH)
        self.backbone = DiffusionBackbone(model=model, settings=settings, device=device)
        self.specs: Mapping[str, TapSpec] = self.backbone.specs
        self.agents = AgentMaker(
            settings=settings.agents, specs=self.specs, image_size=settings.image_size, device=device
        )

    @torch.inference_mode()
    def __call__(self, pictures: UInt8[np.ndarray, "batch 3 height width"], keys: Sequence[str]) -> ImageFeatures:
        """Compute the features of a batch: floating arrays float32, ``rgb`` uint8. ``keys`` seed the noise, if any."""
        images = torch.from_numpy(pictures).to(self.backbone.device)
        with self._timed("model"):
            maps = self.backbone(images, keys)
        with self._timed("agents"):
            agents = self.agents({name: values for name, values in maps.items() if name != RGB}, images)
        # Copies from a GPU go to pinned memory, all under way at once.
        host = [
            {name: part.to("cpu", non_blocking=True) for name, part in parts.items()}
            for parts in (maps, agents.queries)
        ]
        geometry = agents.geometry.to("cpu", non_blocking=True)
        self._finish()
        return ImageFeatures(
            maps={name: values.numpy() for name, values in host[0].items()},
            agents={name: values.numpy() for name, values in host[1].items()},
            geometry=geometry.numpy(),
        )

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        with self.clock.during(activity):
            yield
            self._finish()

    def _finish(self) -> None:
        """Let a GPU finish what it was given, so that its time is counted where it is spent."""
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)


class PictureSource:
    """The pictures of an index, decoded at the size the model sees; their rows are those of a source with ``views``.

    ``root`` overrides the index's own.

    Raises:
        MissingDataError: the data root is not there.
    """

    def __init__(
        self,
        *,
        index: FrameIndex,
        image_size: tuple[int, int],
        views: Sequence[str] = (IDENTITY,),
        root: Path | None = None,
    ) -> None:
        self.index = index
        self.image_size = image_size
        self.views = tuple(views)
        self.root = index.root if root is None else root
        if not self.root.is_dir():
            raise MissingDataError(
                f"The data root {self.root} of the index is not there; mount it, or run 'xd3d prepare --root DIR' again"
            )

    def __len__(self) -> int:
        return len(self.index.images.key) * len(self.views)

    def keys(self, rows: Sequence[int]) -> list[str]:
        """Keys of the views in ``rows``."""
        places = [split_row(row, self.views) for row in rows]
        return [view_key(str(self.index.images.key[image]), view) for image, view in places]

    def read(self, rows: Sequence[int]) -> tuple[UInt8[np.ndarray, "batch 3 height width"], dict[int, str]]:
        """Decode the views in ``rows``; those that fail are black, and returned with the reason under their row."""
        pictures = np.zeros((len(rows), 3, *self.image_size), np.uint8)
        failures: dict[int, str] = {}
        decode = lru_cache(maxsize=1)(self._decode)  # the views of an image come one after the other
        for place, row in enumerate(rows):
            image, view = split_row(int(row), self.views)
            try:
                pictures[place] = apply_view(decode(image), view, str(self.index.images.key[image]))
            except DataError as error:
                failures[int(row)] = str(error)
        return pictures, failures

    def _decode(self, image: int) -> UInt8[np.ndarray, "3 height width"]:
        width, height = self.index.images.size[image]
        return load_image(
            self.root / str(self.index.images.path[image]),
            image_size=self.image_size,
            stored_size=(int(width), int(height)),
        )


def _device(settings: ExtractSettings) -> torch.device:
    device = choose_device(settings)
    if settings.device == "cuda" and device.type != "cuda":
        raise BackendError("extract.device is cuda, but torch finds no CUDA device here; set it to auto or cpu")
    return device

"""From pictures to features: the backbone and the agents together, and the reading of pictures from an index.

The job that fills the cache, the forecast and the online source all go through here, so they agree.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from ...cache.layout import ASSIGNMENT, GEOMETRY, MEMBERSHIP
from ...cache.schema import TapSpec
from ...cache.stored import StoredRows
from ...cache.views import IDENTITY, split_row, view_key
from ...errors import BackendError, ConfigError, DataError, MissingDataError
from ...processes import own_device
from ..datasets.index import FrameIndex
from .agents import AgentMaker
from .backbone import DiffusionBackbone
from .clock import StageClock
from .encode import stored_rows
from .images import load_image
from .memberships import strongest_memberships
from .memory import fitting_batch, keep_freed_memory
from .models import settings_model
from .settings import RGB, Decoding, ExtractSettings
from .views import apply_view

__all__ = ["FeatureExtractor", "PictureSource"]

log = logging.getLogger(__name__)


class FeatureExtractor:
    """The frozen model with its agents, loaded once.

    ``specs``: tap -> shape and place of its map; ``batch_size``: how many pictures to hand in at once; ``clock``: the
    seconds that the model and the agents took.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        BackendError: CUDA is asked for and there is none.
        ConfigError: the settings are those of an export.
    """

    def __init__(self, *, settings: ExtractSettings) -> None:
        if settings.exported_from:
            raise ConfigError(
                "extract.exported_from names the cache that an export was made of; what an export holds can be read"
                " (train --cached), not computed: unset it"
            )
        self.settings = settings
        self.clock = StageClock()
        device = own_device(settings.device, setting="extract.device")
        if device.type == "cpu":
            keep_freed_memory()
        model = settings_model(settings)
        self.backbone = DiffusionBackbone(model=model, settings=settings, device=device)
        self.specs: Mapping[str, TapSpec] = self.backbone.specs
        self.agents = AgentMaker(
            settings=settings.agents,
            specs=self.specs,
            image_size=settings.image_size,
            device=device,
        )
        self.batch_size = settings.batch_size or self._fitting_batch(device)

    def __call__(self, pictures: UInt8[np.ndarray, "batch 3 height width"], keys: Sequence[str]) -> StoredRows:
        """Compute the features of a batch as the cache stores them; rows are numbered by their place in the batch.

        ``keys`` seed the noise, if any. A batch that a GPU has no room for is done in halves, as are the later ones.
        """
        while (features := self._attempt(pictures, keys)) is None:
            torch.cuda.empty_cache()
        return features

    def _attempt(self, pictures: np.ndarray, keys: Sequence[str]) -> StoredRows | None:
        """The features of a batch; None, and a smaller ``batch_size``, where the GPU had no room."""
        size = self.batch_size
        starts = range(0, len(keys), size)
        try:
            parts = [self._features(pictures[i : i + size], keys[i : i + size]) for i in starts]
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise BackendError(
                    f"The GPU has no room for one image ({error}); free some of its memory, "
                    "or choose a smaller extract.image_size"
                ) from error
            self.batch_size = max(1, min(size, len(keys)) // 2)
        else:
            return StoredRows.join(
                part.renumbered(range(i, i + len(part.rows))) for i, part in zip(starts, parts, strict=True)
            )
        log.warning("The GPU has no room for %d images at a time; going on with %d", size, self.batch_size)
        return None

    def _fitting_batch(self, device: torch.device) -> int:
        """How many images fit the device: one on a CPU, else what is free over what one image needs."""
        if device.type == "cpu":
            return 1
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._features(np.zeros((1, 3, *self.settings.image_size), np.uint8), ["probe"])
        needed = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        return fitting_batch(torch.cuda.mem_get_info(device)[0], needed)

    @torch.inference_mode()
    def _features(self, pictures: UInt8[np.ndarray, "batch 3 height width"], keys: Sequence[str]) -> StoredRows:
        images = torch.from_numpy(pictures).to(self.backbone.device)
        with self._timed("model"):
            maps = self.backbone(images, keys)
        with self._timed("agents"):
            agents = self.agents({name: values for name, values in maps.items() if name != RGB}, images)
            assignment, membership = strongest_memberships(agents.assignment)
        named = {f"features/{tap}": values for tap, values in maps.items()}
        named |= {f"agents/{tap}": values for tap, values in agents.queries.items()}
        named |= {GEOMETRY: agents.geometry, ASSIGNMENT: assignment, MEMBERSHIP: membership}
        return stored_rows(named, self.settings.profile)

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

    ``decoding`` is that of ``ExtractSettings``; ``root`` overrides the index's own.

    Raises:
        MissingDataError: the data root is not there.
    """

    def __init__(
        self,
        *,
        index: FrameIndex,
        image_size: tuple[int, int],
        views: Sequence[str] = (IDENTITY,),
        decoding: Decoding = "full",
        root: Path | None = None,
    ) -> None:
        self.index = index
        self.decoding: Decoding = decoding
        self.image_size = image_size
        self.views = tuple(views)
        self.root = index.root if root is None else root
        if not self.root.is_dir():
            raise MissingDataError(
                f"The data root {self.root} of the index is not there; mount it, or run 'xd3d prepare --root DIR' again"
            )

    @classmethod
    def of(cls, index: FrameIndex, settings: ExtractSettings, root: Path | None) -> "PictureSource":
        """The pictures that ``settings`` ask for."""
        return cls(
            index=index, image_size=settings.image_size, views=settings.views, decoding=settings.decoding, root=root
        )

    def __len__(self) -> int:
        return len(self.index.images.key) * len(self.views)

    def keys(self, rows: Sequence[int]) -> list[str]:
        """Keys of the views in ``rows``."""
        places = [split_row(row, self.views) for row in rows]
        return [view_key(str(self.index.images.key[image]), view) for image, view in places]

    def by_image(self, rows: Iterable[int]) -> list[list[int]]:
        """``rows`` in groups that follow each other and show the same image: what is read from one file."""
        return [list(group) for _, group in groupby(rows, lambda row: row // len(self.views))]

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
            lens=self.index.lenses.get(str(self.index.images.camera[image])),
            decoding=self.decoding,
        )

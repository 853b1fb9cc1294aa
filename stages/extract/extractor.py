"""Computes the features of pictures: the frozen network, then the agents, timed on the thread that drives them.

The cache job, the forecast and the online source share this code.
"""

import ctypes
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from ...cache.schema import ASSIGNMENT, CHANNEL_AXES, GEOMETRY, MEMBERSHIP, TapSpec
from ...cache.stored import StoredRows
from ...errors import BackendError, ConfigError
from ...processes import select_device
from .agents import AgentMaker
from .backbones import Backbone, JointBackbone, open_backbone
from .encode import round_trip, stored_rows, strongest_memberships
from .images import FeatureMaps, PictureArray, Pictures
from .models import settings_model
from .settings import RGB, ExtractSettings

__all__ = [
    "ACTIVITIES",
    "FeatureExtractor",
    "LARGEST_BATCH",
    "StageClock",
    "agent_arrays",
    "fitting_batch",
    "keep_freed_memory",
]

log = logging.getLogger(__name__)


#: the last two are waits for other threads, and so is ``agents`` in a job on a CPU
ACTIVITIES = ("model", "agents", "decoding", "writing")
LARGEST_BATCH = 64  #: images per batch; a GPU is no faster with more
MEMORY_SHARE = 0.8  #: share of the free memory for a batch; the rest is for fragmentation and library workspaces
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  #: from glibc's malloc.h


class FeatureExtractor:
    """The frozen model and the agents, loaded once.

    ``specs``: tap -> shape of its map and its position on the image; ``batch_size``: pictures per call; ``clock``:
    seconds spent in the model and the agents.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        BackendError: CUDA is requested and not available.
        ConfigError: the settings are those of an export, or their ``agents`` name an unknown tap.
    """

    def __init__(self, *, settings: ExtractSettings) -> None:
        if settings.exported_from:
            raise ConfigError(
                "extract.exported_from names the cache that an export was made of; what an export holds can be read"
                " (train --cached), not computed: unset it"
            )
        self.settings = settings
        self.clock = StageClock()
        device = select_device(settings.device, setting="extract.device")
        if device.type == "cpu":
            keep_freed_memory()
        self.backbone: Backbone
        if settings.models:
            self.backbone = JointBackbone(settings=settings, device=device)
        else:
            self.backbone = open_backbone(settings_model(settings), settings, device)
        self.specs: Mapping[str, TapSpec] = self.backbone.specs
        self.agents = (
            None
            if settings.maps_only
            else AgentMaker(settings=settings.agents, specs=self.specs, image_size=settings.image_size, device=device)
        )
        self.batch_size = settings.batch_size or 1
        if settings.batch_size is None and device.type != "cpu":
            self.batch_size = self._fitting_batch(device)

    def __call__(self, pictures: PictureArray, keys: Sequence[str]) -> StoredRows:
        """Computes the features of a batch as the cache stores them; rows are numbered by batch index.

        ``keys`` seed the noise, if any. When the GPU runs out of memory, the batch size is halved from then on.
        """
        while (features := self._attempt(pictures, keys)) is None:
            torch.cuda.empty_cache()
        return features

    def begin(self, pictures: PictureArray, keys: Sequence[str]) -> Callable[[], StoredRows]:
        """Runs the model on a batch; returns a function that computes the stored rows, in any thread.

        On a GPU everything is computed before this method returns.
        """
        if self.backbone.device.type == "cpu":
            return partial(self._rows, *self._maps(pictures, keys))
        features = self(pictures, keys)
        return lambda: features

    def _attempt(self, pictures: np.ndarray, keys: Sequence[str]) -> StoredRows | None:
        """Computes a batch; when the GPU runs out of memory, halves ``batch_size`` and returns None."""
        size = self.batch_size
        starts = range(0, len(keys), size)
        try:
            parts = [self._features(pictures[i : i + size], keys[i : i + size]) for i in starts]
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise BackendError(
                    f"The GPU ran out of memory for one image ({error}); free some of its memory, "
                    "or choose a smaller extract.image_size"
                ) from error
            self.batch_size = max(1, min(size, len(keys)) // 2)
        else:
            return StoredRows.join(
                part.renumbered(range(i, i + len(part.rows))) for i, part in zip(starts, parts, strict=True)
            )
        log.warning("The GPU ran out of memory with %d images at a time; continuing with %d", size, self.batch_size)
        return None

    def _fitting_batch(self, device: torch.device) -> int:
        """Returns the batch size that fits the GPU: its free memory over that of one image."""
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self(np.zeros((1, 3, *self.settings.image_size), np.uint8), ["probe"])
        needed = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        return fitting_batch(torch.cuda.mem_get_info(device)[0], needed)

    def _features(self, pictures: PictureArray, keys: Sequence[str]) -> StoredRows:
        images, maps = self._maps(pictures, keys)
        with self._timed("agents"):
            return self._rows(images, maps)

    @torch.inference_mode()
    def _maps(self, pictures: PictureArray, keys: Sequence[str]) -> tuple[Pictures, FeatureMaps]:
        images = torch.from_numpy(pictures).to(self.backbone.device)
        with self._timed("model"):
            return images, self.backbone(images, keys)

    @torch.inference_mode()
    def _rows(self, images: Pictures, maps: FeatureMaps) -> StoredRows:
        """Groups the pixels of ``images`` by their maps, and encodes both."""
        named = {f"features/{tap}": values for tap, values in maps.items()}
        if self.agents is not None:
            if self.settings.models:  # a cache of several networks groups what it has stored
                profile, axis = self.settings.profile, CHANNEL_AXES["features"]
                maps = {tap: round_trip(values, profile, axis) for tap, values in maps.items() if tap != RGB}
            named |= agent_arrays(self.agents, maps, images)
        return stored_rows(named, self.settings.profile)

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        with self.clock.during(activity):
            yield
            if self.backbone.device.type == "cuda":  # so that its time is counted for the right activity
                torch.cuda.synchronize(self.backbone.device)


def agent_arrays(
    maker: AgentMaker,
    maps: FeatureMaps,
    pictures: Pictures,
) -> dict[str, Num[Tensor, "batch *row"]]:
    """Returns the arrays of the agents of a batch, by their names in the cache."""
    agents = maker({name: values for name, values in maps.items() if name != RGB}, pictures)
    assignment, membership = strongest_memberships(agents.assignment)
    queries = {f"agents/{tap}": values for tap, values in agents.queries.items()}
    return {**queries, GEOMETRY: agents.geometry, ASSIGNMENT: assignment, MEMBERSHIP: membership}


class StageClock:
    """Adds up ``seconds`` by activity; ``elapsed`` is the wall time since the last restart."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Resets all counters."""
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Wall time in seconds since the last restart."""
        return time.perf_counter() - self._start

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Adds the time of the block to ``activity``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory instead of returning it to the system; returns whether that worked.

    By default glibc unmaps large arrays at once, and each new feature map costs a page fault per 4 kB: a quarter of
    the time of a full-size autoencoder. The process keeps its peak size.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1))


def fitting_batch(free: int, image: int) -> int:
    """Returns the largest power of two of images that fit ``free`` bytes at ``image`` bytes each; at least 1."""
    fits = min(LARGEST_BATCH, int(MEMORY_SHARE * free) // max(image, 1))
    return 1 << max(0, fits.bit_length() - 1)

"""Forecasts the bytes, the free disk space and the time of a run from one probe image; writes nothing."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.metadata import MANIFEST, load_layout
from ...cache.network_parts import network_part
from ...cache.stores import open_store
from ...cache.verify import cache_info
from ...errors import DataError
from ..datasets.index import FrameIndex
from .extractor import FeatureExtractor
from .images import PictureSource
from .job import planned_layout, stored_bytes
from .network_parts import NetworksPlan
from .overlap import LARGEST_DECODERS, host_threads
from .settings import ExtractSettings

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The cost of a run. ``bytes`` is the exact size of the arrays of a complete cache, as in ``cache info``.

    ``left`` is the number of remaining images, ``bytes_left`` and ``seconds`` their cost; ``seconds_per_image`` was
    measured on one image. On a CPU the times of decoding and the model add up; with a GPU they overlap, and the longer
    one counts.
    """

    images: int
    left: int
    bytes_per_image: int
    bytes: int
    bytes_left: int
    free_bytes: int | None  #: None if no limit is known
    seconds_per_image: float
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the disk has enough space for the remaining images."""
        return self.free_bytes is None or self.bytes_left <= self.free_bytes


def forecast(
    index: FrameIndex, settings: ExtractSettings, cache_path: Path | str, *, retry_failed: bool = False
) -> Forecast:
    """Forecasts the cost of ``extract_features`` with the same arguments.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        MissingDataError: the data root does not exist.
        DataError: no image of the index can be decoded.
    """
    if settings.models:
        return _forecast_networks(index, settings, cache_path, retry_failed=retry_failed)
    pictures = PictureSource.of(index, settings)
    extractor = FeatureExtractor(settings=settings)
    store = open_store(cache_path)
    if store.exists(MANIFEST):  # a cache keeps its format and its shards
        layout, stored = load_layout(store), cache_info(cache_path)
    else:
        layout, stored = planned_layout(index, settings, extractor.specs), {"done": 0, "failed": 0, "bytes": 0}
    total = stored_bytes(layout, layout.shards())
    left = layout.images - _finished(stored, retry_failed=retry_failed)
    seconds = _probe(extractor, pictures)
    return Forecast(
        images=layout.images,
        left=left,
        bytes_per_image=layout.bytes_per_image,
        bytes=total,
        bytes_left=max(0, total - int(stored["bytes"])),
        free_bytes=store.free_bytes(),
        seconds_per_image=seconds,
        seconds=left * seconds,
    )


def _forecast_networks(
    index: FrameIndex, settings: ExtractSettings, cache_path: Path | str, *, retry_failed: bool
) -> Forecast:
    """Adds up the parts of a cache of several networks; agents count with their bytes, grouping them takes no time."""
    plan = NetworksPlan(index=index, settings=settings, path=cache_path)
    incomplete, agents = plan.incomplete(retry_failed), plan.agents_layout()
    parts = [
        forecast(index, part, network_part(cache_path, name), retry_failed=retry_failed)
        for name, part in incomplete.items()
    ]
    grouped = 0
    if open_store(plan.agents_path).exists(MANIFEST):
        grouped = _finished(cache_info(plan.agents_path), retry_failed=retry_failed)
    left = max([agents.images - grouped, *(part.left for part in parts)])
    complete = [network_part(cache_path, name) for name in plan.parts if name not in incomplete]
    stored = sum(cache_info(path)["bytes"] for path in complete)
    return Forecast(
        images=agents.images,
        left=left,
        bytes_per_image=agents.bytes_per_image + sum(part.bytes_per_image for part in parts),
        bytes=stored + stored_bytes(agents, agents.shards()) + sum(part.bytes for part in parts),
        bytes_left=(agents.images - grouped) * agents.bytes_per_image + sum(part.bytes_left for part in parts),
        free_bytes=open_store(cache_path).free_bytes(),
        seconds_per_image=sum((part.seconds_per_image for part in parts), 0.0),
        seconds=sum((part.seconds for part in parts), 0.0),
    )


def _finished(stored: Mapping[str, Any], *, retry_failed: bool) -> int:
    """Returns how many images of a cache need no further work."""
    return int(stored["done"]) + (0 if retry_failed else int(stored["failed"]))


def _probe(extractor: FeatureExtractor, pictures: PictureSource) -> float:
    """Measures the seconds per image on the first one that decodes, after one warm-up pass."""
    reason = "it names no images"
    for row in range(len(pictures)):
        _, failures = pictures.read([row])
        if not failures:
            break
        reason = failures[row]
    else:
        raise DataError(f"No image of the index can be decoded ({reason}); run 'xd3d prepare' to list what is missing")
    for _ in range(2):
        start = time.perf_counter()
        decoded, _ = pictures.read([row])
        between = time.perf_counter()
        extractor(decoded, pictures.keys([row]))
        decoding, model = between - start, time.perf_counter() - between
    if extractor.backbone.device.type == "cpu":
        return decoding + model
    return max(decoding / host_threads(LARGEST_DECODERS), model)

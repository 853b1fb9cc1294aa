"""The forecast of a run: bytes, free disk and time, from one probe image and without writing anything."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...cache.metadata import MANIFEST, load_layout
from ...cache.stores import open_store
from ...cache.verify import cache_info
from ...errors import DataError
from ..datasets.index import FrameIndex
from .extractor import FeatureExtractor
from .images import PictureSource
from .overlap import LARGEST_DECODERS, host_threads
from .plan import planned_layout, stored_bytes
from .settings import ExtractSettings

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take. ``bytes`` is the exact size of a whole cache's arrays, as ``cache info`` counts it.

    ``left`` is the number of images still to do, ``bytes_left`` and ``seconds`` what they take; ``seconds_per_image``
    was measured on one image. Decoding shares a CPU with the model and adds to its time; beside a GPU, where threads
    decode meanwhile, the slower of the two counts.
    """

    images: int
    left: int
    bytes_per_image: int
    bytes: int
    bytes_left: int
    free_bytes: int | None  #: None where caches are kept without a known limit
    seconds_per_image: float
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is left."""
        return self.free_bytes is None or self.bytes_left <= self.free_bytes


def forecast(
    index: FrameIndex, settings: ExtractSettings, cache_path: Path | str, *, root: Path | None = None
) -> Forecast:
    """Foretell what ``extract_features`` with the same arguments will take.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        MissingDataError: the data root is not there.
        DataError: no image of the index can be decoded.
    """
    pictures = PictureSource.of(index, settings, root)
    extractor = FeatureExtractor(settings=settings)
    layout, store = planned_layout(index, settings, extractor.specs), open_store(cache_path)
    stored: dict[str, Any] = {"done": 0, "failed": 0, "bytes": 0}
    if store.exists(MANIFEST):
        layout = replace(layout, grid=load_layout(store).grid)  # a cache keeps the format that it was begun in
        stored = cache_info(cache_path)
    total = stored_bytes(layout, layout.shards())
    left = layout.images - int(stored["done"]) - int(stored["failed"])
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


def _probe(extractor: FeatureExtractor, pictures: PictureSource) -> float:
    """Seconds an image, by the first that decodes, the second time it is done: the first time libraries warm up."""
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

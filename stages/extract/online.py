"""A feature source without a cache: computes features on request, with the code that fills the cache."""

import copy
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ...cache.schema import ImageFeatures, TapSpec, features_of
from ...errors import DataError, ModelError
from ..datasets.index import FrameIndex
from .extractor import FeatureExtractor
from .images import PictureSource
from .settings import ExtractSettings

__all__ = ["OnlineExtractor"]


class OnlineExtractor:
    """A ``FeatureSource`` without a cache.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        MissingDataError: the data root is not there.
        BackendError, ConfigError: see ``FeatureExtractor``.
    """

    def __init__(self, *, index: FrameIndex, settings: ExtractSettings) -> None:
        self._settings = settings
        self._pictures = PictureSource.of(index, settings)
        self._extractor = FeatureExtractor(settings=settings)
        self._lock = threading.Lock()  # the taps register hooks in the model that all threads share
        self.taps: Mapping[str, TapSpec] = self._extractor.specs
        self.grid: TapSpec | None = self._extractor.agents.grid if self._extractor.agents else None
        self.agents = settings.agents.count
        self.views = settings.views

    def with_index(self, index: FrameIndex) -> "OnlineExtractor":
        """Returns a source of the images of ``index`` that shares the model with this one."""
        other = copy.copy(self)
        other._pictures = PictureSource.of(index, self._settings)
        return other

    def require(self, rows: Sequence[int]) -> None:
        """Does nothing: an image is only checked when it is decoded."""

    def read(self, rows: Sequence[int]) -> ImageFeatures:
        """Computes the features of ``rows``, in that order, as a cache would return them.

        Raises:
            DataError: an image cannot be decoded.
            ModelError: the model gave NaN or infinity for an image.
        """
        if not len(rows):  # no frame has an image: the arrays of a black one, without its row
            with self._lock:
                black = self._extractor(np.zeros((1, 3, *self._settings.image_size), np.uint8), [""])
            return features_of({name: np.asarray(values)[:0] for name, values in black.arrays.items()})
        pictures, failures = self._pictures.read(rows)
        if failures:
            raise DataError("; ".join(failures.values()))
        keys = self._pictures.keys(rows)
        with self._lock:
            stored = self._extractor(pictures, keys)
        for index, reason in stored.failed.items():
            raise ModelError(
                f"The model gave NaN or infinity for image {keys[index]} ({reason}); try extract.dtype float32"
            )
        return stored.features()

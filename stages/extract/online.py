"""The online source: features computed when they are asked for, by the same code that fills the cache."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...cache.rows import as_stored, coded
from ...cache.schema import ImageFeatures, TapSpec
from ...errors import DataError, ModelError
from ..datasets.index import FrameIndex
from .extractor import FeatureExtractor, PictureSource, join_features
from .settings import ExtractSettings

__all__ = ["OnlineExtractor"]


class OnlineExtractor:
    """A ``FeatureSource`` without a cache. ``root`` overrides the index's own.

    Raises:
        ModelError: the model cannot be found, is incomplete or lacks a tap.
        MissingDataError: the data root is not there.
    """

    def __init__(self, *, index: FrameIndex, settings: ExtractSettings, root: Path | None = None) -> None:
        self._pictures = PictureSource(index=index, image_size=settings.image_size, views=settings.views, root=root)
        self._extractor = FeatureExtractor(settings=settings)
        self._one_at_a_time = threading.Lock()  # the taps hook into the one model that all threads share
        self.taps: Mapping[str, TapSpec] = self._extractor.specs
        self.grid: TapSpec | None = self._extractor.agents.grid
        self.agents = settings.agents.count
        self.views = settings.views
        self._profile = settings.profile

    def require(self, rows: Sequence[int]) -> None:
        """Nothing is known of an image before it is looked at."""

    def read(self, rows: Sequence[int]) -> ImageFeatures:
        """Compute the features of the views in ``rows``, in that order, as a cache would give them out.

        Raises:
            DataError: an image cannot be decoded.
            ModelError: the model gave NaN or infinity for an image.
        """
        size = self._extractor.batch_size
        return join_features([self._batch(rows[first : first + size]) for first in range(0, len(rows), size)])

    def _batch(self, rows: Sequence[int]) -> ImageFeatures:
        pictures, failures = self._pictures.read(rows)
        if failures:
            raise DataError("; ".join(failures.values()))
        keys = self._pictures.keys(rows)
        with self._one_at_a_time:
            features = self._extractor(pictures, keys)
        for name, values in (*features.maps.items(), ("geometry", features.geometry)):
            finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if not finite.all():
                raise ModelError(
                    f"The model gave NaN or infinity in {name} for image {keys[int(np.argmin(finite))]}; "
                    "try extract.dtype float32"
                )
        exact = ImageFeatures(
            maps={name: as_stored(values, np.dtype(self.taps[name].dtype)) for name, values in features.maps.items()},
            agents={name: as_stored(values, np.dtype(np.float16)) for name, values in features.agents.items()},
            geometry=features.geometry,
            assignment=features.assignment,
            membership=features.membership,
        )
        return coded(exact) if self._profile == "compact" else exact

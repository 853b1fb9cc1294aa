"""Where image features come from: a cache on disk or the diffusion model itself, seen through one small interface."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from ...cache.schema import ImageFeatures, TapSpec

__all__ = ["FeatureSource"]


@runtime_checkable
class FeatureSource(Protocol):
    """Raw features of images, by row of the index's image table; safe to read from several threads."""

    @property
    def taps(self) -> Mapping[str, TapSpec]:
        """Every map there is, by name."""

    @property
    def agents(self) -> int:
        """Agents an image."""

    def read(self, rows: Sequence[int]) -> ImageFeatures:
        """Features of the images in ``rows`` of the image table, in that order.

        Raises:
            CacheError: a row has no features: never zeros in their place.
        """

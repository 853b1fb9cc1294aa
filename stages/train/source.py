"""Where image features come from: a cache on disk or the diffusion model itself, seen through one small interface."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from ...cache.schema import ImageFeatures, TapSpec

__all__ = ["FeatureSource"]


@runtime_checkable
class FeatureSource(Protocol):
    """Raw features of images; safe to read from several threads.

    View ``v`` of the image in row ``i`` of the index's image table is row ``i * len(views) + v`` of the source.
    """

    @property
    def taps(self) -> Mapping[str, TapSpec]:
        """Every map there is, by name."""

    @property
    def agents(self) -> int:
        """Agents an image."""

    @property
    def grid(self) -> TapSpec | None:
        """The tap on whose grid memberships lie, be it among ``taps`` or not; None where the source has none."""

    @property
    def views(self) -> Sequence[str]:
        """The views of each image (``cache.views``)."""

    def require(self, rows: Sequence[int]) -> None:
        """Check, without reading them, that ``rows`` have features, as far as that can be told beforehand.

        Raises:
            CacheError: a row has none.
        """

    def read(self, rows: Sequence[int]) -> ImageFeatures:
        """Features in ``rows`` of the source, in that order.

        Raises:
            CacheError: a row has no features: never zeros in their place.
        """

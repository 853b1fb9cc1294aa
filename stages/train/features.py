"""Sources of image features: the protocol, the view that is read of each image, and reused memory to read into."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ...cache.loader import ReusedBuffer
from ...cache.reader import AllocateArray
from ...cache.schema import ImageFeatures, TapSpec
from ...cache.views import HFLIP, IDENTITY
from ...errors import RunError
from ..datasets.frames import Frame

__all__ = ["BufferedSource", "FeatureSource", "ReadFeatures", "draw_views", "feature_readers", "identity_views"]

#: Reads the features of rows of a source.
ReadFeatures = Callable[[Sequence[int]], ImageFeatures]

#: The largest float32 below 1: a point inside an image stays strictly inside when the image is mirrored.
_BELOW_ONE = np.float32(1 - 2**-24)


@runtime_checkable
class FeatureSource(Protocol):
    """Raw features of images, from a cache or computed online; safe to read from several threads.

    View ``v`` of the image in row ``i`` of the index's image table is row ``i * len(views) + v`` of the source.
    """

    @property
    def taps(self) -> Mapping[str, TapSpec]:
        """All feature maps, by name."""

    @property
    def agents(self) -> int:
        """Number of agents per image."""

    @property
    def grid(self) -> TapSpec | None:
        """The tap on whose grid memberships lie, which need not be among ``taps``; None without memberships."""

    @property
    def views(self) -> Sequence[str]:
        """The views of each image (``cache.views``)."""

    def require(self, rows: Sequence[int]) -> None:
        """Checks, without reading, that ``rows`` have features, as far as this is known in advance.

        Raises:
            CacheError: a row has no features.
        """

    def read(self, rows: Sequence[int]) -> ImageFeatures:
        """Reads the features of ``rows``, in that order.

        Raises:
            CacheError: a row has no features. Missing rows are never filled with zeros.
        """


@runtime_checkable
class BufferedSource(FeatureSource, Protocol):
    """A source that can read into given arrays, as the reader of the cache does."""

    def allocate(
        self, count: int, *, taps: Sequence[str] | None, memberships: bool, empty: AllocateArray
    ) -> ImageFeatures:
        """Allocates arrays for ``count`` images and the given ``taps``, with or without ``memberships``."""

    def read(self, rows: Sequence[int], out: ImageFeatures | None = None) -> ImageFeatures:
        """Reads the features of ``rows``, into ``out`` if it is given."""


def feature_readers(
    source: FeatureSource | None, slots: int, *, taps: Sequence[str], pinned: bool, memberships: bool = False
) -> list[ReadFeatures | None]:
    """Makes one reader of ``source`` for each slot of a prefetching ring; None without a source.

    Each reader reads ``taps``, and ``memberships`` if asked, into one buffer that it reuses from batch to batch: fresh
    arrays of tens of megabytes per batch cost as much in page faults as the reading itself. ``pinned`` buffers can be
    copied to a GPU while it computes. A source that always allocates, such as the online one, is read as it is.
    """
    if not isinstance(source, BufferedSource):
        return [source.read if source is not None else None] * slots
    empty: AllocateArray = _empty_pinned if pinned else np.empty
    allocate = partial(source.allocate, taps=taps, memberships=memberships, empty=empty)
    return [_reader_into(source, ReusedBuffer(allocate)) for _ in range(slots)]


def _reader_into(source: BufferedSource, buffer: ReusedBuffer) -> ReadFeatures:
    return lambda rows: source.read(rows, buffer.first(len(rows)))


def _empty_pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    import torch

    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(shape, dtype=kind, pin_memory=True).numpy()


def draw_views(
    frame: Frame, source: FeatureSource | None, rng: np.random.Generator
) -> tuple[Frame, Int64[np.ndarray, "views"]]:
    """Draws one of the source's views for each image of ``frame``.

    Returns the frame with its projections moved to where the views show the points, and the index of each view.
    """
    views = source.views if source else (IDENTITY,)
    drawn = rng.integers(len(views), size=len(frame.image_rows))
    mirrored = np.array([view == HFLIP for view in views])[drawn][frame.projection_view]
    if not mirrored.any():
        return frame, drawn
    uv = frame.projection_uv.copy()
    uv[mirrored, 0] = np.minimum(1 - uv[mirrored, 0], _BELOW_ONE)
    return replace(frame, projection_uv=uv), drawn


def identity_views(frame: Frame, source: FeatureSource | None) -> Int64[np.ndarray, "views"]:
    """Returns the index of the unchanged view, once for each image of ``frame``; evaluation reads this view.

    Raises:
        RunError: the source does not have this view.
    """
    views = list(source.views) if source else [IDENTITY]
    if IDENTITY not in views:
        raise RunError(
            f"Evaluation reads the view '{IDENTITY}' of an image, and these features hold {', '.join(views)};"
            " extract them with extract.views that include it"
        )
    return np.full(len(frame.image_rows), views.index(IDENTITY), np.int64)

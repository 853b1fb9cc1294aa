"""Memory for image features that is used again from batch to batch: pinned where they go to a GPU.

Fresh arrays of tens of megabytes a batch cost page faults as dear as the reading itself, and a copy to the GPU runs
beside the computation only from pinned memory.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from ...cache.loader import ReusedBuffer
from ...cache.reader import AllocateArray
from ...cache.schema import ImageFeatures
from .domain import Domain
from .source import FeatureSource

__all__ = ["BufferedSource", "domain_of_each_slot"]


@runtime_checkable
class BufferedSource(FeatureSource, Protocol):
    """A source that fills arrays it is given, as the cache's reader does."""

    def allocate(
        self, count: int, *, taps: Sequence[str] | None, memberships: bool, empty: AllocateArray
    ) -> ImageFeatures:
        """Arrays for ``count`` images and the ``taps`` that are wanted, with ``memberships`` or without."""

    def read(self, rows: Sequence[int], out: ImageFeatures | None = None) -> ImageFeatures:
        """Features of ``rows``, in ``out`` where it is given."""


def domain_of_each_slot(
    domain: Domain, slots: int, *, taps: Sequence[str], device: torch.device, memberships: bool = False
) -> list[Domain]:
    """The domain once for each slot of a loader's ring; each reads ``taps`` into memory of its own, again and again.

    ``memberships`` says whether those of the grouping grid are read too.

    A source that always makes new arrays, such as the online one, is shared as it is.
    """
    source = domain.features
    if not isinstance(source, BufferedSource):
        return [domain] * slots
    empty: AllocateArray = _empty_pinned if device.type == "cuda" else np.empty
    allocate = partial(source.allocate, taps=taps, memberships=memberships, empty=empty)
    return [replace(domain, features=_ReusedFeatures(source, ReusedBuffer(allocate))) for _ in range(slots)]


class _ReusedFeatures:
    """A source whose arrays hold the last batch that was read, and no other."""

    def __init__(self, source: BufferedSource, buffer: ReusedBuffer) -> None:
        self._source, self._buffer = source, buffer
        self.taps, self.agents, self.grid, self.views = source.taps, source.agents, source.grid, source.views

    def require(self, rows: Sequence[int]) -> None:
        self._source.require(rows)

    def read(self, rows: Sequence[int]) -> ImageFeatures:
        return self._source.read(rows, self._buffer.first(len(rows)))


def _empty_pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(shape, dtype=kind, pin_memory=True).numpy()

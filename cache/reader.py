"""Reads batches of committed features by row, directly from the shards.

A row is returned only if it has a commit record and its bytes match the checksum; any other row raises an error, and is
never returned as zeros.
"""

import operator
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt32

from ..errors import CacheError, CacheMismatchError
from ..fingerprint import identity_differences
from .arrays import DamagedRowError, Run, StoredArray, runs_of
from .commits import COMMITTED, DAMAGED, FAILED, CommitLog
from .layout import DONE
from .metadata import load_layout
from .schema import GEOMETRY, MEMBERSHIPS, SCALES, ImageFeatures, TapSpec, features_of, named_arrays
from .stores import open_store
from .verify import refuse_damaged_metadata
from .views import IDENTITY

__all__ = ["AllocateArray", "FeatureReader"]

AllocateArray = Callable[
    [tuple[int, ...], np.dtype[Any]], np.ndarray
]  #: like ``numpy.empty``, possibly in pinned memory


class FeatureReader:
    """An open cache at ``path``.

    ``keys``: the image keys by which the caller numbers rows, if the cache holds only some of them (an export).

    Threads may share a reader; it survives a fork and is reopened when unpickled. The cache may be written meanwhile:
    ``refresh`` picks up new commits. ``whole_shards`` reads ahead the whole shard of a row that is not in the page
    cache: for a slow disk, if the next rows are in the same shards.

    Raises:
        CacheError: there is no cache in ``path``, or its metadata is damaged.
        CacheMismatchError: the fingerprint differs from ``expected``; the message lists the fields.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        expected: Mapping[str, Any] | None = None,
        keys: Sequence[str] | None = None,
        whole_shards: bool = False,
    ) -> None:
        self._store = open_store(path)
        self.path = self._store.location
        self.layout = layout = load_layout(self._store)
        if expected is not None and (lines := identity_differences(expected, layout.identity)):
            raise CacheMismatchError(
                f"The cache in {self.path} was made with other settings:\n  " + "\n  ".join(lines) + "\n"
                "Change the settings back, or extract again with: xd3d extract-features"
            )
        self._arrays = {
            name: StoredArray(store=self._store, array=array, layout=layout, whole_shards=whole_shards)
            for name, array in layout.arrays.items()
        }
        refuse_damaged_metadata(self._store, layout)
        self._log = CommitLog(store=self._store, layout=layout)
        self._whole_shards = whole_shards
        self._keys = None if keys is None or tuple(keys) == layout.image_keys else tuple(keys)
        self._row_of_key = {key: row for row, key in enumerate(layout.image_keys)} if self._keys else {}

        self.taps: dict[str, TapSpec] = {tap.name: tap for tap in layout.taps}  #: by name, in the order of the cache
        self.grid: TapSpec | None = layout.grid  #: grid of the memberships, need not be in ``taps``; None in format 1
        self.agents: int = layout.agents  #: number of agents per image
        self.views: tuple[str, ...] = tuple(layout.fingerprint.get("views", (IDENTITY,)))  #: of each image
        self.image_keys: tuple[str, ...] = layout.image_keys  #: the key of every image, by row
        self.fingerprint: Mapping[str, Any] = layout.fingerprint  #: the settings the features depend on

    def __reduce__(self) -> tuple[Callable[..., "FeatureReader"], tuple[Path | str]]:
        return partial(FeatureReader, keys=self._keys, whole_shards=self._whole_shards), (self.path,)

    @property
    def failed(self) -> dict[int, str]:
        """Row -> reason of images that stage one could not compute."""
        return dict(self._log.failed)

    def checksums(self, array: str) -> UInt32[np.ndarray, "images"]:
        """Returns the crc32c of every row of an array from the commit records; undefined for uncommitted rows."""
        return self._log.crc32c[array]

    @property
    def available(self) -> Bool[np.ndarray, "images"]:
        """Whether each row is committed and can be read."""
        return self._log.states == COMMITTED

    def refresh(self) -> None:
        """Picks up what a writer has committed, replaced or removed since the cache was opened."""
        if self._log.refresh():
            for array in self._arrays.values():
                array.forget()

    def allocate(
        self,
        count: int,
        *,
        taps: Collection[str] | None = None,
        memberships: bool = True,
        empty: AllocateArray = np.empty,
    ) -> ImageFeatures:
        """Allocates uninitialised arrays for ``count`` images, to be reused as ``out`` of ``read``.

        ``taps`` are the names of the taps to read (None: all); ``memberships``: whether to read memberships, if there
        are any. ``empty`` allocates an array of a shape and a dtype.
        """

        def wanted(name: str) -> bool:
            if name in MEMBERSHIPS:
                return memberships
            return taps is None or name == GEOMETRY or name.removeprefix(SCALES).partition("/")[2] in taps

        return features_of(
            {
                name: empty((count, *array.row_shape), array.dtype)
                for name, array in self.layout.arrays.items()
                if wanted(name)
            }
        )

    def read(self, rows: Sequence[int] | Int[np.ndarray, "images"], out: ImageFeatures | None = None) -> ImageFeatures:
        """Returns the features of ``rows``, in the given order; a row may occur more than once.

        Maps and agents are float16 (``compact``: uint8 codes and scales), ``rgb`` uint8, geometry float32, as stored
        (not normalised); format 2 adds memberships. ``out``, from ``allocate(len(rows))``, is filled and returned
        instead of new arrays; arrays that it lacks are not read.

        Raises:
            CacheError: a row is out of range, not committed, failed or damaged; the message names image, array, file
                and reason.
        """
        wanted = self._cache_rows([operator.index(row) for row in rows])
        known = self._log.generation
        self._refuse(wanted)
        target = self.allocate(len(wanted)) if out is None else out
        buffers = self._buffers(target, len(wanted))
        try:
            self._fill(wanted, buffers)
        except CacheError:  # a writer may have replaced the shard since its record was read
            self.refresh()
            if self._log.generation == known:
                raise
            self._refuse(wanted)
            self._fill(wanted, buffers)
        return target

    def require(self, rows: Sequence[int] | Int[np.ndarray, "images"]) -> None:
        """Checks with the commit records alone that all ``rows`` can be read.

        Raises:
            CacheError: some cannot; the message counts them, and gives the reason for the first.
        """
        wanted = self._cache_rows([operator.index(row) for row in rows])
        missing = [row for row in wanted if not 0 <= row < self.layout.images or self._log.states[row] != COMMITTED]
        try:
            self._refuse(missing)
        except CacheError as error:
            raise CacheError(f"{len(missing)} of {len(wanted)} images have no features. {error}") from error

    def _cache_rows(self, rows: list[int]) -> list[int]:
        """Maps rows of ``keys`` to rows of the cache."""
        if self._keys is None:
            return rows
        for row in rows:
            if not 0 <= row < len(self._keys):
                raise CacheError(f"Row {row} is asked for, there are {len(self._keys)} images")
            if self._keys[row] not in self._row_of_key:
                raise CacheError(
                    f"Image '{self._keys[row]}' is not in the cache {self.path}, which holds {self.layout.images}"
                    f" of {len(self._keys)} images; export it too (xd3d cache export), or use the whole cache"
                )
        return [self._row_of_key[self._keys[row]] for row in rows]

    def _buffers(self, features: ImageFeatures, count: int) -> dict[str, np.ndarray]:
        named = {}
        found = named_arrays(features)
        for name, array in self.layout.arrays.items():
            values = found.get(name)
            if values is None:
                continue
            shape = (count, *array.row_shape)
            if values.shape != shape or values.dtype != array.dtype or not values.flags.c_contiguous:
                raise CacheError(
                    f"The buffer for {name} is no contiguous {array.dtype.name} {shape}; take it from allocate({count})"
                )
            named[name] = values
        return named

    def _fill(self, rows: list[int], buffers: Mapping[str, np.ndarray]) -> None:
        runs = runs_of(rows, self.layout.images_per_shard)
        if self._store.parallel > 1:
            tasks = [(name, [run], buffer) for name, buffer in buffers.items() for run in runs]
            for _ in self._store.map(self._fill_runs, tasks):
                pass
            return
        waiting = []
        for name, buffer in buffers.items():
            with self._damage_named(name):
                later = self._arrays[name].read_cached(runs, buffer, self._log.crc32c[name])
            waiting.append((name, later, buffer))
        for task in waiting:
            self._fill_runs(task)

    def _fill_runs(self, task: tuple[str, list[Run], np.ndarray]) -> None:
        name, runs, buffer = task
        with self._damage_named(name):
            self._arrays[name].read(runs, buffer, self._log.crc32c[name])

    @contextmanager
    def _damage_named(self, name: str) -> Iterator[None]:
        """Adds image, array and file to the message about a damaged row of the array ``name``."""
        try:
            yield
        except DamagedRowError as error:
            file = self._store.describe(self._arrays[name].file_of(error.row))
            raise CacheError(
                f"Image '{self.image_keys[error.row]}' (row {error.row}) cannot be read, array {name}, file {file}:"
                f" {error.reason}; check the whole cache with: xd3d cache verify {shlex.quote(str(self.path))}"
            ) from error

    def _refuse(self, rows: list[int]) -> None:
        """Raises for the first of ``rows`` that is not committed."""
        images, states = self.layout.images, self._log.states
        for row in rows:
            if not 0 <= row < images:
                raise CacheError(f"Row {row} is not in the cache {self.path}: its rows are 0 to {images - 1}")
            if states[row] != COMMITTED:
                raise self._refusal(row, int(states[row]))

    def _refusal(self, row: int, state: int) -> CacheError:
        index = row // self.layout.images_per_shard
        if state == FAILED:
            reason = (
                f"stage one failed on it: {self._log.failed[row]}; try again with: xd3d extract-features --retry-failed"
            )
        elif state == DAMAGED:
            if load_layout(self._store).format != self.layout.format:
                return CacheError(
                    f"The cache {self.path} was upgraded to another format since it was opened; open it again: start"
                    " the command anew"
                )
            reason = f"{self._log.damaged[index]}; xd3d extract-features writes it again"
        else:
            reason = "it is not committed yet; finish with: xd3d extract-features"
        return CacheError(
            f"Image '{self.image_keys[row]}' (row {row}) cannot be read, all arrays, file "
            f"{self._store.describe(f'{DONE}/{index}.json')}: {reason}"
        )

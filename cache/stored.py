"""Encoded rows, as a cache stores them, with their failures and counts of clamped values.

Stage one computes rows in this form, and exports copy them; the writer only adds checksums.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import CacheError
from .arrays import DamagedRowError, StoredArray, runs_of
from .commits import Commit, CommitLog
from .layout import ArrayLayout, CacheLayout, Shard
from .schema import MEMBERSHIPS, ImageFeatures, features_of

__all__ = ["StoredRows", "check_stored", "read_rows"]


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Rows of the image axis, in order, and their encoded values: array -> one contiguous value per row.

    ``clamped``: array -> row -> clamped values; ``failed``: row -> reason. Values of failed rows are never stored.
    """

    rows: Sequence[int]
    arrays: Mapping[str, Sequence[np.ndarray] | np.ndarray]
    clamped: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Iterable["StoredRows"]) -> "StoredRows":
        """Joins ``parts`` with the same arrays, one after the other; no value is copied."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        return cls(
            rows=[row for part in parts for row in part.rows],
            arrays={name: [value for part in parts for value in part.arrays[name]] for name in parts[0].arrays},
            clamped={
                name: {row: count for part in parts for row, count in part.clamped.get(name, {}).items()}
                for name in sorted({name for part in parts for name in part.clamped})
            },
            failed={row: reason for part in parts for row, reason in part.failed.items()},
        )

    def renumbered(self, rows: Sequence[int]) -> "StoredRows":
        """Returns the same rows, renumbered as ``rows``."""
        new = dict(zip(self.rows, rows, strict=True))
        return replace(
            self,
            rows=list(rows),
            clamped={name: {new[row]: count for row, count in counts.items()} for name, counts in self.clamped.items()},
            failed={new[row]: reason for row, reason in self.failed.items()},
        )

    def with_failures(self, failures: Mapping[int, str]) -> "StoredRows":
        """Returns the same rows, with those in ``failures`` marked as failed."""
        clamped = {
            name: {row: count for row, count in counts.items() if row not in failures}
            for name, counts in self.clamped.items()
        }
        return replace(self, clamped=clamped, failed={**self.failed, **failures})

    def values(self, array: ArrayLayout) -> Iterator[np.ndarray]:
        """Yields the rows of one array as they are written: zeros for failed images."""
        for row, value in zip(self.rows, self.arrays[array.name], strict=True):
            yield np.zeros(array.row_shape, array.dtype) if row in self.failed else value

    def features(self) -> ImageFeatures:
        """Returns the rows as a reader returns them."""
        return features_of({name: np.asarray(values) for name, values in self.arrays.items()})


def check_stored(stored: StoredRows, layout: CacheLayout, shard: Shard) -> None:
    """Checks that ``stored`` has the rows and arrays of ``shard``; format 1 ignores memberships.

    Raises:
        CacheError: rows or arrays are missing or not expected, or a value has another shape or type.
    """
    if list(stored.rows) != list(shard.rows):
        raise CacheError(
            f"Shard {shard.index} needs rows {shard.first} to {shard.last - 1}, found {len(stored.rows)} rows, the"
            f" first {list(stored.rows[:5])}"
        )
    found = stored.arrays.keys() - (set(MEMBERSHIPS) if layout.grid is None else set())
    if found != layout.arrays.keys():
        missing, extra = sorted(layout.arrays.keys() - found), sorted(found - layout.arrays.keys())
        raise CacheError(f"The rows do not fit the cache: missing {missing}, not expected {extra}")
    for name, array in layout.arrays.items():
        if len(stored.arrays[name]) != len(shard.rows):
            raise CacheError(f"{name} has {len(stored.arrays[name])} values for {len(shard.rows)} rows")
        for value in stored.arrays[name]:
            if value.shape != array.row_shape or value.dtype != array.dtype:
                raise CacheError(
                    f"{name} is {value.dtype} {value.shape}; the cache stores {array.dtype.name} {array.row_shape}"
                )


def read_rows(log: CommitLog, arrays: Mapping[str, StoredArray], rows: Sequence[int]) -> StoredRows:
    """Reads committed ``rows`` of ``arrays`` and checks each against its checksum.

    Raises:
        CacheError: a row cannot be read or does not match its checksum, or a commit record no longer exists.
    """
    layout = log.layout
    values = {
        name: np.empty((len(rows), *stored.array.row_shape), stored.array.dtype) for name, stored in arrays.items()
    }
    try:
        for name, stored in arrays.items():
            stored.read(runs_of(rows, layout.images_per_shard), values[name], log.crc32c[name])
    except DamagedRowError as error:
        where = log.store.describe()
        raise CacheError(
            f"Image '{layout.image_keys[error.row]}' (row {error.row}) of {where} is damaged: {error.reason}; "
            f"repair it first with: xd3d cache repair {shlex.quote(where)}"
        ) from error
    clamped: dict[str, dict[int, int]] = {}
    chosen = set(rows)
    for index in sorted({row // layout.images_per_shard for row in rows}):
        commit = Commit.load(log.store, layout.shard(index), layout, log.manifest)
        for name, counts in commit.clamped.items():
            clamped.setdefault(name, {}).update({row: count for row, count in counts.items() if row in chosen})
    failed = {row: log.failed[row] for row in rows if row in log.failed}
    return StoredRows(rows=rows, arrays=values, clamped=clamped, failed=failed)

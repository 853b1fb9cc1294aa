"""Rows as a cache stores them, with what their commit records say: to be copied, not computed again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .arrays import StoredArray, runs_of
from .commits import Commit, CommitLog
from .layout import ArrayLayout, Shard

__all__ = ["KeptRows", "read_rows"]


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """Rows of the image axis, in order, and their stored values: array -> [rows, ...]; failed ones are zero.

    ``clamped``: array -> row -> clamped values; ``failed``: row -> reason.
    """

    rows: Sequence[int] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    clamped: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)

    def among(
        self, shard: Shard, stored: Iterable[tuple[ArrayLayout, Iterable[np.ndarray]]]
    ) -> Iterator[tuple[ArrayLayout, Iterable[np.ndarray]]]:
        """Each array of ``stored``, which has the other rows of ``shard``, with these rows in their places."""
        places = {row: place for place, row in enumerate(self.rows)}
        for array, rows in stored:
            yield array, self._merged(array.name, shard, iter(rows), places)

    def _merged(
        self, name: str, shard: Shard, others: Iterator[np.ndarray], places: Mapping[int, int]
    ) -> Iterator[np.ndarray]:
        for row in shard.rows:
            yield self.arrays[name][places[row]] if row in places else next(others)


def read_rows(log: CommitLog, arrays: Mapping[str, StoredArray], rows: Sequence[int]) -> KeptRows:
    """Read committed ``rows`` of ``arrays``, each held against its checksum.

    Raises:
        DamagedRowError: a row cannot be read or does not match its checksum.
        CacheError: a commit record is not there any more.
    """
    layout = log.layout
    values = {
        name: np.empty((len(rows), *stored.array.row_shape), stored.array.dtype) for name, stored in arrays.items()
    }
    for name, stored in arrays.items():
        stored.read(runs_of(rows, layout.images_per_shard), values[name], log.crc32c[name])
    clamped: dict[str, dict[int, int]] = {}
    chosen = set(rows)
    for index in sorted({row // layout.images_per_shard for row in rows}):
        commit = Commit.load(log.store, layout.shard(index), layout, log.manifest)
        for name, counts in commit.clamped.items():
            clamped.setdefault(name, {}).update({row: count for row, count in counts.items() if row in chosen})
    failed = {row: log.failed[row] for row in rows if row in log.failed}
    return KeptRows(rows=rows, arrays=values, clamped=clamped, failed=failed)

"""Commit records, the only source of truth for a reader, and the mark of a finished cache.

``done/<shard>.json`` appears, whole, after every array's shard file is on disk. It says which rows it commits, how long
each file is, the crc32c of every row of every array, what was clamped and which images failed. It opens with its own
crc32c and names the manifest it belongs to, so a damaged, swapped or foreign record is invalid.

``finished.json`` appears when the last shard is committed and is never removed. Without it, a cache that lost records
would look like an unfinished one. Caches of earlier versions get it from the next writer, export or upgrade.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt32

from ..errors import CacheError
from ..fingerprint import canonical_json, fingerprint_digest
from .layout import DONE, ArrayLayout, CacheLayout, Shard
from .metadata import checksummed_body, checksummed_line, manifest_checksum, parse_json
from .stores import Store
from .stores.base import Files, Version

__all__ = [
    "COMMITTED",
    "Commit",
    "CommitLog",
    "DAMAGED",
    "FAILED",
    "FINISHED",
    "UNCOMMITTED",
    "encode_finished",
    "finished_fault",
    "list_records",
    "lost_records",
]

UNCOMMITTED, COMMITTED, FAILED, DAMAGED = range(4)

FINISHED = "finished.json"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The commit record of one shard. Rows are rows of the image axis; ``last`` is exclusive."""

    shard: int
    first: int
    last: int
    manifest: str  #: checksum of the cache's manifest
    sizes: Mapping[str, int]  #: bytes of each array's shard file
    crc32c: Mapping[str, Sequence[int]]  #: array -> checksum of each row's values (C order, little endian)
    clamped: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  #: array -> row -> clamped values
    failed: Mapping[int, str] = field(default_factory=dict)  #: row -> reason; such a row is zero in every array

    def encode(self) -> bytes:
        """Returns the content of the record's file."""
        clamped = {name: {str(row): n for row, n in sorted(rows.items())} for name, rows in self.clamped.items()}
        body = {
            **{name: getattr(self, name) for name in ("shard", "first", "last", "manifest")},
            "sizes": dict(self.sizes),
            "clamped": clamped,
            "failed": {str(row): reason for row, reason in sorted(self.failed.items())},
            "crc32c": {name: list(values) for name, values in self.crc32c.items()},
        }
        return checksummed_line("commit", json.dumps(body, separators=(",", ":")).encode())

    @classmethod
    def load(cls, store: Files, shard: Shard, layout: CacheLayout, manifest: str, folder: str = DONE) -> "Commit":
        """Reads the record of ``shard`` in ``folder``.

        Raises:
            CacheError: it is missing, damaged, or speaks of another shard, another cache or other arrays.
        """
        commit, file = cls.read(store, shard.index, folder), store.describe(f"{folder}/{shard.index}.json")
        if (commit.shard, commit.first, commit.last) != (shard.index, shard.first, shard.last):
            raise CacheError(
                f"the commit record {file} is that of shard {commit.shard}, rows {commit.first} to {commit.last - 1}"
            )
        if commit.manifest != manifest:
            raise CacheError(f"the commit record {file} belongs to another cache")
        if stray := [row for row in commit.failed if row not in shard.rows]:
            raise CacheError(f"the commit record {file} names failed rows of other shards: {stray[:5]}")
        lengths = {name: len(values) for name, values in commit.crc32c.items()}
        if lengths != dict.fromkeys(layout.arrays, len(shard.rows)) or commit.sizes.keys() != layout.arrays.keys():
            raise CacheError(f"the commit record {file} speaks of other arrays or rows than the cache has")
        return commit

    @classmethod
    def read(cls, store: Files, index: int, folder: str = DONE) -> "Commit":
        """Reads a record without checking which shard and cache it belongs to.

        Raises:
            CacheError: it is missing or damaged.
        """
        key = f"{folder}/{index}.json"
        data, file = store.read(key), store.describe(key)
        body = checksummed_body("commit", data)
        if body is None:
            raise CacheError(f"the commit record {file} is damaged: it does not match its checksum")
        try:
            return cls._parse(parse_json(body, file))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CacheError(f"the commit record {file} is damaged ({type(error).__name__}: {error})") from error

    @classmethod
    def _parse(cls, body: dict[str, Any]) -> "Commit":
        numbers = {name: int(body[name]) for name in ("shard", "first", "last")}
        return cls(
            **numbers,
            manifest=str(body["manifest"]),
            sizes={str(name): int(size) for name, size in body["sizes"].items()},
            crc32c={str(name): list(values) for name, values in body["crc32c"].items()},
            clamped={
                name: {int(row): int(count) for row, count in rows.items()} for name, rows in body["clamped"].items()
            },
            failed={int(row): str(reason) for row, reason in body["failed"].items()},
        )


class CommitLog:
    """The records of a cache in memory, as columns over its images: about 1 + 4 x arrays bytes per image.

    ``states`` uint8 [images] holds ``UNCOMMITTED``, ``COMMITTED``, ``FAILED`` or ``DAMAGED``; ``crc32c`` maps an array
    to uint32 [images], valid where a row is committed or failed.
    """

    states: UInt8[np.ndarray, "images"]
    crc32c: dict[str, UInt32[np.ndarray, "images"]]

    def __init__(self, *, store: Store, layout: CacheLayout) -> None:
        self.store = store
        self.layout = layout
        self.manifest = manifest_checksum(layout)
        self.states = np.zeros(layout.images, np.uint8)
        self.crc32c = {name: np.zeros(layout.images, np.uint32) for name in layout.arrays}
        self.sizes: dict[int, Mapping[str, int]] = {}
        self.failed: dict[int, str] = {}
        self.damaged: dict[int, str] = {}
        self.generation = 0  #: grows with every change, so that a reader can tell whether what it knew is old
        self._seen: dict[int, Version] = {}
        self.refresh()

    def refresh(self) -> list[int]:
        """Reads new, changed and deleted records; returns the indices of the affected shards."""
        records = sorted(list_records(self.store).items())
        found = {index: version for index, version in records if index < self.layout.shard_count}
        changed = [index for index in found if found[index] != self._seen.get(index)]
        changed += [index for index in self._seen if index not in found]
        for index in changed:
            self._forget(index)
        shards = [self.layout.shard(index) for index in changed if index in found]
        for shard, record in zip(shards, self.store.map(self._load, shards), strict=True):
            self._take(shard, record)
        self._seen = found
        self.generation += bool(changed)
        return changed

    def is_current(self, shard: Shard) -> bool:
        """Returns whether the record of ``shard``, or its absence, has not changed since the last ``refresh``."""
        return self.store.version(f"{DONE}/{shard.index}.json") == self._seen.get(shard.index)

    def wrong_sizes(self, array: ArrayLayout, shards: Iterable[int]) -> dict[int, str]:
        """Returns those of the committed ``shards`` whose file of ``array`` is missing or has another size, and why."""
        files = {index: array.shard_file(index) for index in shards}
        found, wrong = self.store.sizes(files.values()), {}
        for index, file in files.items():
            size, expected = found.get(file), self.sizes[index][array.name]
            if size is None:
                wrong[index] = "the file is missing"
            elif size != expected:
                wrong[index] = f"the file has {size} bytes, the commit record says {expected}"
        return wrong

    def _forget(self, index: int) -> None:
        shard = self.layout.shard(index)
        self.states[shard.first : shard.last] = UNCOMMITTED
        self.sizes.pop(index, None)
        self.damaged.pop(index, None)
        if self.failed:
            for row in shard.rows:
                self.failed.pop(row, None)

    def _load(self, shard: Shard) -> "_Record | str":
        """Returns the record of ``shard``, or the reason why it is invalid."""
        try:
            commit = Commit.load(self.store, shard, self.layout, self.manifest)
            return _Record(
                crc32c={name: _checksums(values) for name, values in commit.crc32c.items()},
                sizes=commit.sizes,
                failed=commit.failed,
            )
        except (CacheError, ValueError) as error:
            return str(error)

    def _take(self, shard: Shard, record: "_Record | str") -> None:
        rows = slice(shard.first, shard.last)
        if isinstance(record, str):
            self.states[rows] = DAMAGED
            self.damaged[shard.index] = record
            return
        for name, values in record.crc32c.items():
            self.crc32c[name][rows] = values
        self.sizes[shard.index] = record.sizes
        self.failed.update(record.failed)
        self.states[rows] = COMMITTED
        self.states[list(record.failed)] = FAILED


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What the log keeps of a commit; its checksums take a tenth of the memory that those of the commit do."""

    crc32c: Mapping[str, UInt32[np.ndarray, "rows"]]
    sizes: Mapping[str, int]
    failed: Mapping[int, str]


def list_records(store: Store, folder: str = DONE) -> dict[int, Version]:
    """Shard number -> the version of its record, for every file in ``folder`` that is named as a record is."""
    found = {}
    for name, version in store.listing(folder).items():
        stem, _, suffix = name.partition(".")
        if suffix == "json" and stem.isdecimal() and str(int(stem)) == stem:
            found[int(stem)] = version
    return found


def _checksums(values: Any) -> UInt32[np.ndarray, "rows"]:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**32:
        raise CacheError("the commit record holds numbers that are no checksums")
    return found.astype(np.uint32)


def encode_finished(layout: CacheLayout) -> bytes:
    """Returns the content of the mark, which is the same in every cache format."""
    facts = {"images": layout.images, "fingerprint": fingerprint_digest(layout.fingerprint)}
    return f"{canonical_json({'finished': facts})}\n".encode()


def finished_fault(store: Store, layout: CacheLayout) -> str | None:
    """Returns what is wrong with the mark; None if it is valid or missing."""
    if not store.exists(FINISHED):
        return None
    try:
        return None if store.read(FINISHED) == encode_finished(layout) else "it differs from what the writer made"
    except CacheError as error:
        return str(error)


def lost_records(log: CommitLog) -> dict[int, str]:
    """Returns shard -> commit record for every missing record of a finished cache."""
    if len(log.sizes) + len(log.damaged) == log.layout.shard_count or not log.store.exists(FINISHED):
        return {}
    found = log.sizes.keys() | log.damaged.keys()
    return {index: f"{DONE}/{index}.json" for index in range(log.layout.shard_count) if index not in found}

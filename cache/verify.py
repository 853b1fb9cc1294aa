"""Describes a cache, and checks it byte for byte: metadata, commit records, shard files and every row in them."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError
from ..fingerprint import differences, fingerprint_digest
from ..progress import track
from .arrays import DamagedRowError, StoredArray
from .commits import COMMITTED, FAILED, FINISHED, CommitLog, finished_fault, lost_records
from .layout import DONE, CacheLayout, Shard
from .metadata import KEYS, MANIFEST, load_layout, metadata_files, parse_json
from .recipe import RECIPE, recipe_fault
from .stores import Store, open_store

__all__ = [
    "Fault",
    "cache_info",
    "metadata_faults",
    "refuse_damaged_metadata",
    "require_cache",
    "row_faults",
    "verify_cache",
]

_LOST = "the cache was finished, and this commit record is missing"
_LONGEST_LINE = 600  #: characters of a message about one key of a metadata file


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One difference from what was committed. ``row`` and ``image`` (its key) are None if no single image is affected.

    ``array`` is None if the file does not belong to an array; ``file`` is a path inside the cache.
    """

    file: str
    reason: str
    array: str | None = None
    row: int | None = None
    image: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns image, array, file and reason."""
        return {"image": self.image, "array": self.array, "file": self.file, "reason": self.reason}


def verify_cache(path: Path | str, *, quick: bool = False) -> dict[str, Any]:
    """Checks every committed row of every array, and all metadata, against what was committed.

    ``quick`` reads no values: it checks the metadata, the commit records and the sizes of the shard files.

    Returns a JSON-ready dictionary: ``ok``, ``images`` (of the cache; None if that cannot be read), ``checked``
    (number of committed images) and ``damaged``, a list of ``image`` (key; None if a file does not belong to a single
    image), ``array`` (None likewise), ``file`` (inside the cache) and ``reason``. Uncommitted shards
    are not damage, unless the cache was finished before. One shard of one array is in memory at a time.

    Raises:
        CacheError: there is no cache in ``path``.
    """
    store = open_store(path)
    require_cache(store)
    try:
        layout = load_layout(store)
    except CacheError as error:
        file, reason = (KEYS if KEYS in str(error) else MANIFEST), str(error)
        if not store.exists(MANIFEST):
            reason = "the manifest is missing, and commit records exist"
        return {"ok": False, "images": None, "checked": 0, "damaged": [Fault(file=file, reason=reason).to_json()]}
    log = CommitLog(store=store, layout=layout)
    arrays = {f"{array.path}/zarr.json": name for name, array in layout.arrays.items()}
    faults = [
        Fault(file=file, reason=reason, array=arrays.get(file))
        for file, reason in metadata_faults(store, layout).items()
    ]
    faults += [Fault(file=f"{DONE}/{index}.json", reason=reason) for index, reason in sorted(log.damaged.items())]
    faults += [Fault(file=file, reason=_LOST) for file in lost_records(log).values()]
    faults += row_faults(log, quick=quick)
    checked = sum(len(layout.shard(index).rows) for index in log.sizes)
    damaged = [fault.to_json() for fault in faults]
    return {"ok": not faults, "images": layout.images, "checked": checked, "damaged": damaged}


def require_cache(store: Store) -> None:
    """Checks that there are image keys or commit records; a manifest alone may be that of another Zarr group.

    Raises:
        CacheError: there is none.
    """
    if not store.exists(KEYS) and not store.listing(DONE):
        raise CacheError(f"There is no feature cache in {store.describe()}; make one with: xd3d extract-features")


def row_faults(log: CommitLog, *, quick: bool = False) -> Iterator[Fault]:
    """Yields one fault for each row and array that differs from its valid commit record."""
    layout = log.layout
    arrays = [StoredArray(store=log.store, array=array, layout=layout) for array in layout.arrays.values()]
    shards = [layout.shard(index) for index in sorted(log.sizes)]
    wrong = {stored.array.name: log.wrong_sizes(stored.array, log.sizes) for stored in arrays}
    for shard in track(shards, "Verifying", len(shards), "shard"):
        for stored in arrays:
            if reason := wrong[stored.array.name].get(shard.index):
                file = stored.array.shard_file(shard.index)
                for row in shard.rows:
                    yield Fault(
                        file=file, reason=reason, array=stored.array.name, row=row, image=layout.image_keys[row]
                    )
            elif not quick:
                yield from _value_faults(log, stored, shard)


def _value_faults(log: CommitLog, stored: StoredArray, shard: Shard) -> Iterator[Fault]:
    """Yields the damaged rows of one shard of an array; reads all rows at once, and one by one only if that fails."""
    name = stored.array.name
    rows = np.empty((len(shard.rows), *stored.array.row_shape), stored.array.dtype)
    try:
        stored.read([(0, shard.first, len(rows))], rows, log.crc32c[name])
    except DamagedRowError:
        for row in shard.rows:
            try:
                stored.read([(0, row, 1)], rows[:1], log.crc32c[name])
            except DamagedRowError as error:
                yield Fault(
                    file=stored.file_of(row), reason=error.reason, array=name, row=row, image=log.layout.image_keys[row]
                )


def cache_info(path: Path | str) -> dict[str, Any]:
    """Describes a cache from its manifest and its commit records; reads no features.

    Returns a JSON-ready dictionary: ``cache`` (path), ``fingerprint`` (sha256), ``images``, ``done`` (readable images),
    ``failed``, ``bytes`` (of all committed shard files), ``bytes_per_image`` (bytes over committed images, failed ones
    among them; the size of a row where none is committed) and ``arrays``: name -> ``shape``, ``dtype``, ``bytes``.

    Raises:
        CacheError: there is no cache in ``path``, or its manifest is damaged.
    """
    store = open_store(path)
    layout = load_layout(store)
    log = CommitLog(store=store, layout=layout)
    sizes = {name: sum(sizes[name] for sizes in log.sizes.values()) for name in layout.arrays}
    done, failed = (int(np.count_nonzero(log.states == state)) for state in (COMMITTED, FAILED))
    total = sum(sizes.values())
    return {
        "cache": store.describe(),
        "fingerprint": fingerprint_digest(layout.fingerprint),
        "images": layout.images,
        "done": done,
        "failed": failed,
        "bytes": total,
        "bytes_per_image": total / (done + failed) if total else layout.bytes_per_image,
        "arrays": {
            name: {"shape": [layout.images, *array.row_shape], "dtype": array.dtype.name, "bytes": sizes[name]}
            for name, array in layout.arrays.items()
        },
    }


def metadata_faults(store: Store, layout: CacheLayout, *, byte_for_byte: bool = True) -> dict[str, str]:
    """Returns file -> reason for every metadata file that differs from what the writer made.

    Without ``byte_for_byte`` only differences in content count.
    """
    faults = {}
    for name, data in metadata_files(layout).items():
        try:
            found = store.read(name)
            if found != data and (reason := _difference(found, data, store.describe(name), byte_for_byte)):
                faults[name] = reason
        except (ValueError, RecursionError) as error:  # a CacheError is a ValueError
            faults[name] = str(error)
    others = {RECIPE: recipe_fault(store), FINISHED: finished_fault(store, layout)}
    return faults | {name: reason for name, reason in others.items() if reason}


def refuse_damaged_metadata(store: Store, layout: CacheLayout) -> None:
    """Raises if the metadata is damaged, or an array was stored by another tool with a codec that is not read here.

    Raises:
        CacheError: a file is missing, damaged, or contradicts the manifest; the message names it, and the codec.
    """
    for file, reason in metadata_faults(store, layout, byte_for_byte=False).items():
        raise CacheError(
            f"{store.describe(file)} is damaged: {reason}; repair it with: xd3d cache repair"
            f" {shlex.quote(store.describe())}"
        )


def _difference(found: bytes, made: bytes, file: str, byte_for_byte: bool) -> str:
    """Returns how a file differs from what was ``made``; "" if only its formatting does, unless ``byte_for_byte``."""
    theirs = parse_json(found, file)
    if not isinstance(theirs, dict):
        return "it is no metadata of a cache"
    if lines := differences(parse_json(made, file), theirs):
        foreign = any(line.startswith("codecs:") for line in lines)
        reason = "arrays that were stored with other codecs of zarr are not read; " if foreign else ""
        return reason + "; ".join(line[:_LONGEST_LINE] for line in lines[:3])
    return "it differs from what the writer made" if byte_for_byte else ""

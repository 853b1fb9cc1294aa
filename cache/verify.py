"""Whether a cache is, byte for byte, as committed: its metadata, commit records, shard files and every row in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError
from ..progress import track
from .arrays import DamagedRowError, StoredArray
from .commits import CommitLog
from .finished import lost_records
from .intact import metadata_faults
from .layout import DONE, ArrayLayout, CacheLayout, Shard
from .metadata import KEYS, MANIFEST, array_is_plain, load_layout
from .stores import Store, open_store

__all__ = ["Fault", "row_faults", "verify_cache"]

_LOST = "the cache was finished, and this commit record is missing"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is not as committed. ``row`` and ``image`` (its key) are None where no single image is concerned.

    ``array`` is None where the file belongs to no array, ``file`` a path inside the cache.
    """

    file: str
    reason: str
    array: str | None = None
    row: int | None = None
    image: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Image, array, file and reason."""
        return {"image": self.image, "array": self.array, "file": self.file, "reason": self.reason}


def verify_cache(path: Path | str, *, quick: bool = False) -> dict[str, Any]:
    """Read every committed row of every array and hold it, and all metadata, against what was committed.

    ``quick`` reads no values: it looks at the metadata, the commit records and the sizes of the shard files.

    Returns a JSON-ready dictionary: ``ok``, ``images`` (of the cache; None where that cannot be read), ``checked``
    (committed ones, which were looked at) and ``damaged``, a list of ``image`` (key; None where a file concerns no
    single image), ``array`` (None likewise), ``file`` (inside the cache) and ``reason``. Shards that are not committed
    yet are no damage, unless the cache was finished once. Memory holds one array's shard at a time.

    Raises:
        CacheError: ``path`` holds no cache at all.
    """
    store = open_store(path)
    if not store.exists(MANIFEST) and not store.listing(DONE):
        raise CacheError(f"There is no feature cache in {store.describe()}; make one with: xd3d extract-features")
    try:
        layout = load_layout(store)
    except CacheError as error:
        file, reason = (KEYS if KEYS in str(error) else MANIFEST), str(error)
        if not store.exists(MANIFEST):
            reason = "the manifest is missing, commit records are there"
        return {"ok": False, "images": None, "checked": 0, "damaged": [Fault(file=file, reason=reason).to_json()]}
    log = CommitLog(store=store, layout=layout)
    faults = [
        Fault(
            file=file,
            reason=reason,
            array=array if (array := file.removesuffix("/zarr.json")) in layout.arrays else None,
        )
        for file, reason in metadata_faults(store, layout).items()
    ]
    faults += [Fault(file=f"{DONE}/{index}.json", reason=reason) for index, reason in sorted(log.damaged.items())]
    faults += [Fault(file=file, reason=_LOST) for file in lost_records(store, log).values()]
    faults += row_faults(store, log, quick=quick)
    checked = sum(len(layout.shard(index).rows) for index in log.sizes)
    damaged = [fault.to_json() for fault in faults]
    return {"ok": not faults, "images": layout.images, "checked": checked, "damaged": damaged}


def row_faults(store: Store, log: CommitLog, *, quick: bool = False) -> Iterator[Fault]:
    """Rows of soundly committed shards whose files or values are not as committed, one fault for each row and array.

    Rows of an array whose metadata is not as the writer made it are passed over: nothing can be said of them.
    """
    layout = log.layout
    arrays = [
        StoredArray(store=store, array=array, layout=layout)
        for array in layout.arrays.values()
        if _is_as_written(store, array, layout)
    ]
    shards = [layout.shard(index) for index in sorted(log.sizes)]
    wrong = {
        (index, stored.array.name): reason
        for stored in arrays
        for index, reason in _wrong_sizes(store, log, stored.array)
    }
    for shard in track(shards, "Verifying", len(shards), "shard"):
        for stored in arrays:
            if reason := wrong.get((shard.index, stored.array.name)):
                file = stored.array.shard_file(shard.index)
                for row in shard.rows:
                    yield Fault(
                        file=file, reason=reason, array=stored.array.name, row=row, image=layout.image_keys[row]
                    )
            elif not quick:
                yield from _value_faults(log, stored, shard)


def _is_as_written(store: Store, array: ArrayLayout, layout: CacheLayout) -> bool:
    try:
        return array_is_plain(store, array, layout)
    except CacheError:
        return False


def _wrong_sizes(store: Store, log: CommitLog, array: ArrayLayout) -> Iterator[tuple[int, str]]:
    """Committed shards of an array whose file is missing or of another length, with the reason."""
    files = {index: array.shard_file(index) for index in log.sizes}
    found = store.sizes(files.values())
    for index, file in files.items():
        size, expected = found.get(file), log.sizes[index][array.name]
        if size is None:
            yield index, "the file is missing"
        elif size != expected:
            yield index, f"the file has {size} bytes, the commit record says {expected}"


def _value_faults(log: CommitLog, stored: StoredArray, shard: Shard) -> Iterator[Fault]:
    """Rows of one array's shard whose values differ: all rows in one read, row by row only where that fails."""
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

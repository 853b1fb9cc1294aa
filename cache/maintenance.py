"""Looking after a cache: what it holds (``cache_info``) and whether every byte is as committed (``verify_cache``)."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError
from ..progress import track
from .arrays import DamagedRowError, StoredArray
from .commits import COMMITTED, FAILED, CommitLog
from .fingerprint import fingerprint_digest
from .layout import DONE, ArrayLayout, CacheLayout, Shard
from .metadata import KEYS, MANIFEST, array_is_plain, load_layout, metadata_files
from .stores import Store, open_store

__all__ = ["cache_info", "verify_cache"]


def cache_info(path: Path | str) -> dict[str, Any]:
    """Describe a cache from its manifest and its commit records, reading no features.

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


def verify_cache(path: Path | str) -> dict[str, Any]:
    """Read every committed row of every array and hold it, and all metadata, against what was committed.

    Returns a JSON-ready dictionary: ``ok``, ``checked`` (images whose rows were all compared) and ``damaged``, a list
    of ``image`` (key; None where a file concerns no single image), ``array`` (None likewise), ``file`` (inside the
    cache) and ``reason``. Shards that are not committed yet are no damage. Memory holds one array's shard at a time.

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
        return {"ok": False, "checked": 0, "damaged": [_fault(None, None, file, reason)]}
    log = CommitLog(store=store, layout=layout)
    damaged = _metadata_faults(store, layout)
    damaged += [_fault(None, None, f"{DONE}/{index}.json", reason) for index, reason in sorted(log.damaged.items())]
    arrays = [
        StoredArray(store=store, array=array, layout=layout)
        for array in layout.arrays.values()
        if _is_as_written(store, array, layout)
    ]
    shards = [layout.shard(index) for index in sorted(log.sizes)]
    for shard in track(shards, "Verifying", len(shards), "shard"):
        for stored in arrays:
            damaged += _shard_faults(store, log, stored, shard)
    return {"ok": not damaged, "checked": sum(len(shard.rows) for shard in shards), "damaged": damaged}


def _metadata_faults(store: Store, layout: CacheLayout) -> list[dict[str, Any]]:
    """Metadata files that are not, byte for byte, what the writer made."""
    faults = []
    for name, data in metadata_files(layout).items():
        array = name.removesuffix("/zarr.json")
        try:
            reason = "" if store.read(name) == data else "it differs from what the writer made"
        except CacheError as error:
            reason = str(error)
        if reason:
            faults.append(_fault(None, array if array in layout.arrays else None, name, reason))
    return faults


def _is_as_written(store: Store, array: ArrayLayout, layout: CacheLayout) -> bool:
    """Whether an array's rows can be looked up; if not, its metadata is at fault and nothing is known of its rows."""
    try:
        return array_is_plain(store, array, layout)
    except CacheError:
        return False


def _shard_faults(store: Store, log: CommitLog, stored: StoredArray, shard: Shard) -> list[dict[str, Any]]:
    """Faults of one array's shard, one for each image: all rows in one read, row by row only where that fails."""
    array, layout = stored.array, log.layout
    rows = np.empty((len(shard.rows), *array.row_shape), array.dtype)
    try:
        _check_size(store.size(array.shard_file(shard.index)), log.sizes[shard.index][array.name])
        stored.read([(0, shard.first, len(rows))], rows, log.crc32c[array.name])
    except DamagedRowError:
        return [fault for row in shard.rows for fault in _row_faults(log, stored, row, rows[:1])]
    except CacheError as error:
        file = array.shard_file(shard.index)
        return [_fault(layout.image_keys[row], array.name, file, str(error)) for row in shard.rows]
    return []


def _check_size(size: int, expected: int) -> None:
    if size != expected:
        raise CacheError(f"the file has {size} bytes, the commit record says {expected}")


def _row_faults(log: CommitLog, stored: StoredArray, row: int, buffer: np.ndarray) -> list[dict[str, Any]]:
    try:
        stored.read([(0, row, 1)], buffer, log.crc32c[stored.array.name])
    except DamagedRowError as error:
        return [_fault(log.layout.image_keys[row], stored.array.name, stored.file_of(row), error.reason)]
    return []


def _fault(image: str | None, array: str | None, file: str, reason: str) -> dict[str, Any]:
    return {"image": image, "array": array, "file": file, "reason": reason}

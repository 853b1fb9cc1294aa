"""What a cache holds, said by its manifest and its commit records; no features are read."""

from pathlib import Path
from typing import Any

import numpy as np

from ..fingerprint import fingerprint_digest
from .commits import COMMITTED, FAILED, CommitLog
from .metadata import load_layout
from .stores import open_store

__all__ = ["cache_info"]


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

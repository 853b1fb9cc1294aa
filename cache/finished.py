"""The mark of a finished cache: that every image was committed once is remembered outside the commit records.

Without it, a cache that lost records looks like one that is still being made. The mark appears when the last shard is
committed and never goes. Caches of earlier versions have none until a writer, an export or an upgrade closes them.
"""

import numpy as np

from ..errors import CacheError
from ..fingerprint import canonical_json, fingerprint_digest
from .commits import COMMITTED, FAILED, CommitLog
from .layout import DONE, CacheLayout
from .stores.base import Store

__all__ = ["FINISHED", "encode_finished", "finished_fault", "lost_records", "wants_mark"]

FINISHED = "finished.json"


def encode_finished(layout: CacheLayout) -> bytes:
    """The content of the mark; it is the same in every format of the cache."""
    facts = {"images": layout.images, "fingerprint": fingerprint_digest(layout.fingerprint)}
    return f"{canonical_json({'finished': facts})}\n".encode()


def wants_mark(store: Store, log: CommitLog) -> bool:
    """Whether every image is committed by what ``log`` knows, failed ones among them, and the mark is not there yet."""
    return bool(np.isin(log.states, (COMMITTED, FAILED)).all()) and not store.exists(FINISHED)


def finished_fault(store: Store, layout: CacheLayout) -> str | None:
    """What is wrong with the mark, if there is one."""
    if not store.exists(FINISHED):
        return None
    try:
        return None if store.read(FINISHED) == encode_finished(layout) else "it differs from what the writer made"
    except CacheError as error:
        return str(error)


def lost_records(store: Store, log: CommitLog) -> dict[int, str]:
    """Shard -> its commit record, for every record that is missing of a cache that was finished."""
    if len(log.sizes) + len(log.damaged) == log.layout.shard_count or not store.exists(FINISHED):
        return {}
    there = log.sizes.keys() | log.damaged.keys()
    return {index: f"{DONE}/{index}.json" for index in range(log.layout.shard_count) if index not in there}

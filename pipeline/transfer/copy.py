"""Copies files from one remote to another: in batches, in threads, each compared with its SHA-256 on the way."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from ...cache.layout import DONE
from ...cache.metadata import MANIFEST as ROOT
from ...errors import StoreError
from ...progress import progress
from .remotes import Remote

__all__ = ["Item", "copied", "hashed", "write_order"]

THREADS = 8
BATCH_BYTES = 64_000_000
BATCH_FILES = 256


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file to copy. ``sha256`` is empty until it is known; ``size`` is an estimate until then."""

    name: str
    size: int
    read: Callable[[], bytes]
    sha256: str = ""

    def content(self) -> bytes:
        """Reads the file.

        Raises:
            StoreError: its SHA-256 is another one than expected.
        """
        content = self.read()
        if self.sha256 and (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise StoreError(
                f"{self.name} is damaged: its {len(content)} bytes have SHA-256 {found}, expected {self.size} bytes"
                f" with {self.sha256}"
            )
        return content


def write_order(name: str) -> int:
    """Returns the position of a file in the order of writing: data, commit records, other metadata, the root's last.

    So an unfinished copy never refers to files that are missing.
    """
    path = PurePosixPath(name)
    if name in (ROOT, "run.json"):
        return 3
    if path.parent.name == DONE:
        return 1
    return 2 if path.suffix in (".json", ".jsonl") else 0


def hashed(items: Sequence[Item], title: str, check: Callable[[str, bytes], None]) -> list[Item]:
    """Returns ``items`` with their sizes and digests; ``check`` is called with each name and content.

    Raises:
        StoreError, CacheError: a file cannot be read.
    """

    def facts(item: Item) -> Item:
        content = item.content()
        check(item.name, content)
        return replace(item, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    known: list[Item] = []
    if not items:
        return known
    with progress(title, sum(item.size for item in items), "B") as bar, ThreadPoolExecutor(THREADS) as pool:
        for batch in _batches(items):
            known += pool.map(facts, batch)
            bar.update(sum(item.size for item in batch))
    return known


def copied(items: Iterable[Item], target: Remote, title: str, *, done: int = 0) -> int:
    """Writes ``items`` to ``target`` in their ``write_order``; returns the bytes. ``done`` bytes are there already.

    Raises:
        StoreError: a file has another SHA-256 than expected, or a remote failed; what was written before stays.
    """
    ordered = sorted(items, key=lambda item: (write_order(item.name), item.name))
    total, sent = sum(item.size for item in ordered), 0
    with progress(title, total + done, "B", done=done) as bar, ThreadPoolExecutor(THREADS) as pool:
        for batch in _batches(ordered):
            reading = {item.name: pool.submit(item.content) for item in batch}
            wait(reading.values())
            contents = {name: each.result() for name, each in reading.items() if not each.exception()}
            target.write(contents)
            sent += sum(map(len, contents.values()))
            for each in reading.values():
                each.result()
            bar.update(sum(item.size for item in batch))
    target.finish()
    return sent


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Splits ``items`` where a batch is full or the order changes."""
    batch: list[Item] = []
    size = 0
    for item in items:
        full = len(batch) == BATCH_FILES or size + item.size > BATCH_BYTES
        if batch and (full or write_order(item.name) != write_order(batch[0].name)):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield batch

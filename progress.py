"""Progress bars on stderr, with rate and remaining time."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from .processes import is_first_process

__all__ = ["progress", "track"]

Item = TypeVar("Item")


@contextmanager
def progress(description: str, total: int, unit: str, done: int = 0) -> "Iterator[tqdm[Any]]":
    """Opens a progress bar of ``total`` units, ``done`` of them finished; call ``bar.update(n)`` inside the block.

    Units "B" are bytes, and shown in kB, MB or GB. Without a ``description`` nothing is shown.
    """
    with tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        file=sys.stderr,
        mininterval=0.5,
        dynamic_ncols=True,
        disable=not description or not is_first_process(),
    ) as bar:
        yield bar


def track(items: Iterable[Item], description: str, total: int, unit: str) -> Iterator[Item]:
    """Yields ``items`` and counts them on a progress bar."""
    with progress(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update(1)

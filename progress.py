"""Progress with a rate and the time left, on stderr, for every loop that a person may wait for."""

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
    """Open a bar of ``total`` units, ``done`` of them already; call ``bar.update(n)`` inside."""
    with tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        file=sys.stderr,
        mininterval=0.5,
        dynamic_ncols=True,
        disable=not is_first_process(),
    ) as bar:
        yield bar


def track(items: Iterable[Item], description: str, total: int, unit: str) -> Iterator[Item]:
    """Pass ``items`` on while a bar counts them."""
    with progress(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update(1)

"""The recipe of a cache: its data set and the settings of its extraction.

It is not part of the fingerprint, and reading a cache does not need it. The file holds the same line twice, each with a
checksum, so that one damaged line loses nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

import google_crc32c

from ..errors import CacheError
from ..fingerprint import canonical_json
from .stores.base import Files, Store

__all__ = ["RECIPE", "encode_recipe", "load_recipe", "recipe_fault"]

RECIPE = "recipe.jsonl"

_HEAD = b'{"crc32c":"%08x","recipe":'
_HEAD_LENGTH = len(_HEAD % 0)
_TAIL = b"}\n"


def encode_recipe(recipe: Mapping[str, Any]) -> bytes:
    """Returns the file content for ``recipe`` (plain JSON values)."""
    data = canonical_json(dict(recipe)).encode()
    return 2 * (_HEAD % google_crc32c.value(data) + data + _TAIL)


def load_recipe(store: Files) -> dict[str, Any] | None:
    """Returns the recipe of the cache in ``store``; None if it is missing or damaged."""
    return _parse(store.read(RECIPE)) if store.exists(RECIPE) else None


def recipe_fault(store: Store) -> str | None:
    """Returns what is wrong with the recipe file; None if it is valid or missing."""
    if not store.exists(RECIPE):
        return None
    try:
        data = store.read(RECIPE)
    except CacheError as error:
        return str(error)
    recipe = _parse(data)
    return None if recipe is not None and encode_recipe(recipe) == data else "it does not match its checksums"


def _parse(data: bytes) -> dict[str, Any] | None:
    half = len(data) // 2
    for line in (data[:half], data[half:], *data.splitlines(keepends=True)):
        body = line[_HEAD_LENGTH : -len(_TAIL)]
        if line == _HEAD % google_crc32c.value(body) + body + _TAIL:
            recipe = json.loads(body)
            return recipe if isinstance(recipe, dict) else None
    return None

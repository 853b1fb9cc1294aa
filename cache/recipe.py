"""The recipe of a cache: its data set and the settings of its extraction.

It is not part of the fingerprint, and reading a cache does not need it. The file holds the same line twice, each with a
checksum, so that one damaged line loses nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import CacheError
from ..fingerprint import canonical_json
from .metadata import checksummed_body, checksummed_line
from .stores import Store
from .stores.base import Files

__all__ = ["RECIPE", "encode_recipe", "load_recipe", "recipe_fault"]

RECIPE = "recipe.jsonl"


def encode_recipe(recipe: Mapping[str, Any]) -> bytes:
    """Returns the file content for ``recipe`` (plain JSON values)."""
    return 2 * checksummed_line("recipe", canonical_json(dict(recipe)).encode())


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
        if (body := checksummed_body("recipe", line)) is not None:
            recipe = json.loads(body)
            return recipe if isinstance(recipe, dict) else None
    return None

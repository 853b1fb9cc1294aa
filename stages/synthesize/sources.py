"""Reads this folder's YAML tables, and makes random generators seeded by a path of words."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from ...files import parse_yaml

__all__ = ["random_stream", "read_table"]


@cache
def read_table(name: str) -> Mapping[str, Any]:
    """Returns the table ``name.yaml``, with tuples in place of lists."""
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    table: Mapping[str, Any] = _with_tuples(parse_yaml(text))
    return table


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def random_stream(*path: object, size: int = 16) -> np.random.Generator:
    """Returns the random numbers of a path of words; those of other paths are independent.

    ``size``: bytes of the path's digest that are the seed.
    """
    digest = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:size], "big"))

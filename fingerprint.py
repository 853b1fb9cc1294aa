"""The fingerprint of a cache: every setting its features depend on, as one canonical JSON text and its sha256."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["canonical_json", "differences", "fingerprint_digest", "identity_differences"]

_ABSENT = "(absent)"


def canonical_json(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, ASCII; tuples count as lists.

    Raises:
        ValueError: ``value`` holds NaN or infinity.
        TypeError: ``value`` holds something that JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint_digest(fields: Mapping[str, Any]) -> str:
    """Return the sha256 (64 hexadecimal digits) of the canonical JSON of ``fields``."""
    return hashlib.sha256(canonical_json(dict(fields)).encode()).hexdigest()


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return one line for each field that differs: ``"key: expected X, found Y"``, sorted by key.

    Nested mappings are compared field by field under dotted keys (``agents.count``); lists are compared whole. Values
    are equal when their canonical JSON is, which is when they give the same digest.
    """
    ours, theirs = _flatten(expected), _flatten(found)
    return [
        f"{key}: expected {ours.get(key, _ABSENT)}, found {theirs.get(key, _ABSENT)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def identity_differences(expected: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """``differences`` of the fingerprint that is ``expected`` and the ``CacheLayout.identity`` of a cache.

    A fingerprint that names no profile means ``exact``.
    """
    return differences({"profile": "exact", **expected}, identity)


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = canonical_json(value)
    return flat

"""Canonical JSON of settings, its sha256 digest (the fingerprint of a cache), and differences between two of them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["canonical_json", "differences", "fingerprint_digest", "identity_differences"]

_ABSENT = "(absent)"


def canonical_json(value: Any) -> str:
    """Returns the canonical JSON of ``value``: sorted keys, no spaces, ASCII; tuples become lists.

    Raises:
        ValueError: ``value`` contains NaN or infinity.
        TypeError: ``value`` contains an object that JSON cannot represent.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint_digest(fields: Mapping[str, Any]) -> str:
    """Returns the sha256 (64 hexadecimal digits) of the canonical JSON of ``fields``."""
    return hashlib.sha256(canonical_json(dict(fields)).encode()).hexdigest()


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Returns one line for each field that differs: ``"key: expected X, found Y"``, sorted by key.

    Nested mappings are compared field by field under dotted keys (``agents.count``); lists are compared whole. Values
    are equal if their canonical JSON is, so equal values give equal digests.
    """
    ours, theirs = _flatten(expected), _flatten(found)
    return [
        f"{key}: expected {ours.get(key, _ABSENT)}, found {theirs.get(key, _ABSENT)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def identity_differences(expected: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Returns the ``differences`` between the ``expected`` fingerprint and the ``CacheLayout.identity`` of a cache.

    A fingerprint without a profile means ``exact``.
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

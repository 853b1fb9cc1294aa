"""Digests of model files, and small facts that are kept in the user's cache folder.

Hashing gigabytes takes seconds, so digests of large files are cached there by path, size and modification time. Without
that cache only time is lost.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...files import read_json, write_json

__all__ = ["file_digest", "folder_digest", "recall", "remember"]

MEMORY = "digests.json"
LARGE = 64_000_000  #: bytes from which a digest is cached


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file, hexadecimal; that of a large unchanged file comes from the cache."""
    facts = path.stat()
    if facts.st_size < LARGE:
        return _hash(path)
    known = recall(MEMORY)
    key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    if not isinstance(known.get(key), str):
        known[key] = _hash(path)
        remember(MEMORY, known)
    return str(known[key])


def folder_digest(folder: Path, files: Iterable[Path]) -> str:
    """Returns the sha256 over the names (relative to ``folder``) and contents of files, sorted by name."""
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def recall(name: str) -> dict[str, Any]:
    """Reads the JSON object ``name`` in the user's cache folder; empty if it is missing or damaged."""
    try:
        known = read_json(_folder() / name)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(name: str, known: dict[str, Any]) -> None:
    """Writes the JSON object ``name`` to the user's cache folder; does nothing if that is read-only."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        write_json(_folder() / name, known)
    except OSError:
        return


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "xd3d"

"""Digests of model files.

Hashing gigabytes takes seconds, so digests of large files are cached in the user's cache folder, by path, size and
modification time. Without that cache only time is lost.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...files import read_json, write_json

__all__ = ["file_digest", "folder_digest"]

LARGE = 64_000_000  #: bytes from which a digest is cached


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file, hexadecimal; that of a large unchanged file comes from the cache."""
    facts = path.stat()
    if facts.st_size < LARGE:
        return _hash(path)
    base = os.environ.get("XDG_CACHE_HOME")
    memory = (Path(base) if base else Path.home() / ".cache") / "xd3d" / "digests.json"
    key, known = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}", _recalled(memory)
    if not isinstance(known.get(key), str):
        known[key] = _hash(path)
        with contextlib.suppress(OSError):  # it may be read-only
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, known)
    return str(known[key])


def folder_digest(folder: Path, files: Iterable[Path]) -> str:
    """Returns the sha256 over the names (relative to ``folder``) and contents of files, sorted by name."""
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _recalled(memory: Path) -> dict[str, Any]:
    """Returns the cached digests; none if the file is missing or damaged."""
    try:
        known = read_json(memory)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

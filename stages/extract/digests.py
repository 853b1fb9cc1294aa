"""Digests of model files, so that two folders with the same content count as the same model.

Hashing gigabytes takes seconds, so digests of large files are remembered in the user's cache folder under the file's
path, size and time of change; losing that memory costs time only.
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
LARGE = 64_000_000  #: bytes from which a digest is worth remembering


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal; remembered for large files that did not change since."""
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
    """sha256 over the names (relative to ``folder``) and contents of files, in the order of their names."""
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def recall(name: str) -> dict[str, Any]:
    """Facts kept under ``name`` in the user's cache folder; empty where there are none, or none that can be read."""
    try:
        known = read_json(_folder() / name)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(name: str, known: dict[str, Any]) -> None:
    """Keep facts under ``name``; in a read-only home they are lost, which costs time only."""
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

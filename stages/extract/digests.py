"""Digests of model files, so that two folders with the same content count as the same model.

Hashing gigabytes takes seconds, so digests of large files are remembered in the user's cache folder under the file's
path, size and time of change; losing that memory costs time only.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ...files import read_json, write_json

__all__ = ["file_digest", "folder_digest"]

LARGE = 64_000_000  #: bytes from which a digest is worth remembering


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal; remembered for large files that did not change since."""
    facts = path.stat()
    if facts.st_size < LARGE:
        return _hash(path)
    memory = _memory()
    known = _recall(memory)
    key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    if key not in known:
        known[key] = _hash(path)
        _remember(memory, known)
    return known[key]


def folder_digest(folder: Path, files: Iterable[Path]) -> str:
    """sha256 over the names (relative to ``folder``) and contents of files, in the order of their names."""
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "xd3d" / "digests.json"


def _recall(memory: Path) -> dict[str, str]:
    try:
        known = read_json(memory)
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _remember(memory: Path, known: dict[str, str]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, known)
    except OSError:
        return  # a read-only home costs the next run a second hashing, nothing else

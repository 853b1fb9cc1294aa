"""Reading of small text files (lists, calibrations, descriptions) with errors that name the remedy."""

import codecs
import json
from pathlib import Path
from typing import Any

from ...errors import DataError, MissingDataError
from .foreign_files import foreign_kind

__all__ = ["read_object", "read_text"]


def read_text(path: Path, what: str, remedy: str, *, missing: str | None = None) -> str:
    """Returns the text of ``path``, a ``what`` such as "calibration"; ``missing`` is the remedy for a missing file.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is not a file, is not readable, or is not UTF-8.
    """
    try:
        if path.is_file():
            content = path.read_bytes()
            if foreign := foreign_kind(path, content):
                raise DataError(f"The {what} {path} {foreign}")
            return _decode(content)
        problem = "is not a file;" if path.exists() else ""
    except OSError as error:
        problem = f"cannot be read ({error.strerror}): fix that, or"
    except UnicodeDecodeError as error:
        problem = f"is not text ({error});"
    if not problem:
        raise MissingDataError(f"The {what} {path} {foreign_kind(path) or f'is missing: {missing or remedy}'}")
    raise DataError(f"The {what} {path} {problem} {remedy}")


def _decode(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with a byte-order mark, as Windows writes it, with line ends of any system."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """Returns the JSON object in ``path``.

    Raises:
        MissingDataError: the file is missing.
        DataError: it cannot be read, is not JSON, or is not an object.
    """
    try:
        found = json.loads(read_text(path, what, remedy))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"The {what} {path} is not JSON ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise DataError(f"The {what} {path} holds a {type(found).__name__} instead of an object; {remedy}")
    return found

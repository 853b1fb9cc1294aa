"""Small text files of a data set: lists, calibrations, descriptions. What cannot be read is named, with the remedy."""

import json
from pathlib import Path
from typing import Any

from ...errors import DataError, MissingDataError

__all__ = ["read_object", "read_text"]


def read_text(path: Path, what: str, remedy: str, *, missing: str | None = None) -> str:
    """The text of ``path``, which is a ``what``, such as "calibration"; ``missing`` is the remedy where it is missing.

    Raises:
        MissingDataError: there is no such file.
        DataError: it is a folder or the like, may not be read, or is not UTF-8.
    """
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
        problem = "is no file;" if path.exists() else ""
    except OSError as error:
        problem = f"cannot be read ({error.strerror}): mend that, or"
    except ValueError as error:
        problem = f"is no text ({error});"
    if not problem:
        raise MissingDataError(f"The {what} {path} is missing: {missing or remedy}")
    raise DataError(f"The {what} {path} {problem} {remedy}")


def read_object(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``, as ``read_text`` reads it.

    Raises:
        MissingDataError: there is no such file.
        DataError: it cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        found = json.loads(read_text(path, what, remedy))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"The {what} {path} is no JSON ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise DataError(f"The {what} {path} holds a {type(found).__name__} where an object must be; {remedy}")
    return found

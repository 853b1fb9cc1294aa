"""Safe loading of foreign ``.npy`` and ``.npz`` files: every fault of a file raises ValueError."""

import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np

__all__ = ["load_archive", "load_array"]

#: Raised by numpy for damaged files: headers are Python text, and give the size of the allocation.
_FAULTS = (ValueError, EOFError, SyntaxError, TokenError, BadZipFile, MemoryError, TypeError, OverflowError)

#: In an archive, arrays may also be missing, or compressed in a damaged, unknown or encrypted form.
_ARCHIVE_FAULTS = (*_FAULTS, KeyError, zlib.error, RuntimeError)


def load_array(source: Path | BytesIO, *, mapped: bool = False) -> np.ndarray:
    """Returns the array in a ``.npy`` file, with ``mapped`` memory-mapped read-only; nothing is unpickled.

    Raises:
        ValueError: it is damaged, or not a single array of plain values.
        OSError: it cannot be read.
    """
    found: Any
    try:
        if isinstance(source, BytesIO):
            found = np.load(source, allow_pickle=False)
        elif mapped:
            found = np.lib.format.open_memmap(source, mode="r")  # type: ignore[no-untyped-call]  # numpy's own
        else:
            with source.open("rb") as file:
                found = np.load(file, allow_pickle=False)
    except _FAULTS as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is an archive of arrays, not one saved with numpy.save")  # noqa: TRY004  # of the content
    return found


def load_archive(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Returns the arrays called ``names`` in a ``.npz`` file; nothing is unpickled.

    Raises:
        ValueError: it is damaged, or lacks one of them as an array of plain values.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except _ARCHIVE_FAULTS as error:
        raise ValueError(str(error) or type(error).__name__) from error

"""Arrays that others saved with numpy: whatever is wrong with the file is one kind of error."""

from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

__all__ = ["load_array"]

#: What numpy raises over damaged files: their headers are Python text, and say how much memory to ask for.
_FAULTS = (ValueError, EOFError, SyntaxError, TokenError, BadZipFile, MemoryError, TypeError, OverflowError)


def load_array(source: Path | BytesIO, *, mapped: bool = False) -> np.ndarray:
    """The array in a ``.npy`` file, with ``mapped`` as a read-only map of it; nothing is unpickled.

    Raises:
        ValueError: it is damaged, or no single array of plain values.
        OSError: it cannot be read.
    """
    mode: Literal["r"] | None = "r" if mapped else None
    try:
        found: Any = np.load(source, mmap_mode=mode, allow_pickle=False)
    except _FAULTS as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is an archive of arrays, not one saved with numpy.save")  # noqa: TRY004  # of the content
    return found

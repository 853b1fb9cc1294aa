"""Checks of single files, used by every reader: missing and truncated files are found before hours of work."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...errors import DataError
from ...progress import track

__all__ = [
    "UNDECODABLE",
    "Check",
    "FileFault",
    "binary_fault",
    "common_size",
    "image_fault",
    "run_checks",
]

log = logging.getLogger(__name__)

#: Bytes at the end of an image that must contain its end marker; some writers pad files with zeros.
_TAIL = 64

_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}

#: Checks wait for the disk (or a network), not for the processor.
_THREADS = 8
_WINDOW = 1024

#: Pixels of the largest accepted image: Pillow's own limit, which other packages of a process may lift.
_MAX_PIXELS = 2 * 2**30 // 12

#: Raised by Pillow for files that it cannot decode.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

#: A path, and a function that returns the fault of the file, the number of points that will be dropped, or None.
Check = tuple[Path, Callable[[], str | int | None]]


@dataclass(frozen=True, kw_only=True)
class FileFault:
    """A file that is missing or differs from the data set's tables, and the remedy."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Returns width and height of images of equal size, read from the first image that can be opened.

    Raises:
        DataError: no image can be opened.
    """
    for path in paths:
        with suppress(*UNDECODABLE):
            if path.is_file():
                return _header(path)[0]
    which = f"{len(paths)} images such as {paths[0]}" if paths else "images of an empty folder"
    raise DataError(f"None of the {which} can be opened; unpack the download again")


def _header(path: Path) -> tuple[tuple[int, int], str | None]:
    """Width and height of an image, and its format."""
    with Image.open(path) as image:
        width, height = image.size
        if width * height > _MAX_PIXELS:
            raise ValueError(f"{width}x{height} are more pixels than any camera has")
        return (width, height), image.format


def image_fault(path: Path, size: tuple[int, int]) -> str | None:
    """Returns the fault of the image at ``path``, expected to have ``size`` (width, height) pixels, or None.

    Only the header and the last bytes are read: a truncated JPEG or PNG file lacks its end marker. Damage inside the
    file is found by the decoder later, since decoding every image of a data set takes hours.
    """
    if not path.is_file():
        return "the image is missing; unpack the download again"
    try:
        found, kind = _header(path)
        with path.open("rb") as file:
            file.seek(-min(_TAIL, path.stat().st_size), 2)
            tail = file.read().rstrip(b"\0")
    except UNDECODABLE as error:
        return f"the image cannot be opened ({_short(error, path)}); unpack the download again"
    if found != size:
        return f"the image is {found[0]}x{found[1]} pixels, the tables say {size[0]}x{size[1]}; unpack it again"
    marker = _END_MARKERS.get(kind or "")
    if marker and not tail.endswith(marker):
        return f"the image is truncated (it ends without the {kind} end marker); unpack the download again"
    return None


def binary_fault(path: Path, what: str, row_bytes: int, rows: int | None = None) -> str | None:
    """Returns the fault of a file of fixed-size rows (a ``what``, such as "sweep"), or None.

    It must hold whole rows of ``row_bytes`` bytes: ``rows`` of them if given, else at least one.
    """
    if not path.is_file():
        return f"the {what} is missing; unpack the download again"
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
    if size == 0:
        return f"the {what} is empty; unpack the download again"
    if size % row_bytes:
        return f"the {what} is truncated: {size} bytes is not a multiple of {row_bytes}; unpack the download again"
    if rows is not None and size != rows * row_bytes:
        return f"the {what} has {size // row_bytes} entries, its sweep has {rows} points; unpack both again"
    return None


def run_checks(checks: Iterable[Check], total: int) -> list[FileFault]:
    """Runs ``total`` checks in threads with a progress bar; returns the faults in the order of the checks.

    Points that will be dropped are counted in a warning.
    """
    faults, dropped = [], dict[Path, int]()
    for path, found in track(_in_threads(checks), "checking files", total, "file"):
        if isinstance(found, str):
            faults.append(FileFault(path=path, reason=found))
        elif found:
            dropped[path] = found
    if dropped:
        log.warning(
            "%d points of %d sweeps have no usable coordinates (NaN, infinite or too coarse) and are left out, such as"
            " %d of %s",
            *(sum(dropped.values()), len(dropped), *reversed(next(iter(dropped.items())))),
        )
    return faults


def _in_threads(checks: Iterable[Check]) -> Iterator[tuple[Path, str | int | None]]:
    """Results in order, in windows: bounds the memory, and lets an interrupt take effect early."""
    waiting = iter(checks)
    with ThreadPoolExecutor(_THREADS) as pool:
        while window := list(itertools.islice(waiting, _WINDOW)):
            yield from pool.map(_run, window)


def _run(check: Check) -> tuple[Path, str | int | None]:
    path, find_fault = check
    try:
        return path, find_fault()
    except OSError as error:
        return path, f"the file cannot be read ({error.strerror}); fix that, or unpack the download again"


def _short(error: Exception, path: Path) -> str:
    """The error's text without the path, which stands beside it already."""
    return str(error).replace(repr(str(path)), "").strip(" :")

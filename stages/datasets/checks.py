"""Checks of single files, used by every reader: missing and truncated files are found before hours of work."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ...errors import DataError, MissingDataError
from ...progress import track
from .foreign_files import foreign_kind
from .index import FrameIndex

__all__ = [
    "UNDECODABLE",
    "UNPACK",
    "Check",
    "Faults",
    "FileFault",
    "Remark",
    "binary_fault",
    "common_size",
    "image_checks",
    "image_fault",
    "image_size",
    "missing_since_indexed",
    "run_checks",
]

log = logging.getLogger(__name__)

#: Bytes at the end of an image that must contain its end marker; some writers pad files with zeros.
_TAIL = 64

_JPEG_SCAN = b"\xff\xda"  #: begins the pixels
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}

#: Checks wait for the disk (or a network), not for the processor.
_THREADS = 8
_WINDOW = 1024

#: Pixels of the largest accepted image: Pillow's own limit, which other packages of a process may lift.
_UNBOUNDED = ("F", "I")  #: 32-bit pixel types, which have no largest value
_MAX_PIXELS = 2 * 2**30 // 12

#: Raised by Pillow for files that it cannot decode.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

#: Formats whose tags stand at the start of the file, and the tag of the orientation.
_TAGGED, _ORIENTATION = ("JPEG", "MPO", "TIFF"), 0x0112
_TURNED = "images carry an orientation tag (EXIF), which is ignored: calibrate for the pixels as they are stored"

#: Suffixes that a file may have in place of its own.
_SUFFIXES = (".png", ".PNG", ".jpg", ".JPG", ".jpeg", ".npy", ".npz", ".pcd", ".ply", ".bin", ".label")

#: Remedy for a damaged file of a published data set.
UNPACK = "unpack the download again"


class Remark(NamedTuple):
    """A finding that is not a fault: ``number`` times ``what``; ``dropped`` of them are points that are left out."""

    number: int
    what: str
    dropped: int = 0


#: A path, and a function that returns the fault of the file, a remark, or None.
Check = tuple[Path, Callable[[], str | Remark | None]]


@dataclass(frozen=True, kw_only=True)
class FileFault:
    """A file that is missing or differs from the data set's tables, and the remedy."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Faults(list[FileFault]):
    """The faults of a data set's files, and how many points of each other file are left out."""

    def __init__(self, faults: Iterable[FileFault] = (), dropped: Mapping[Path, int] | None = None) -> None:
        super().__init__(faults)
        self.dropped = dropped or {}


def image_size(path: Path) -> tuple[int, int] | None:
    """Returns width and height of the image at ``path``; None if it is missing or cannot be opened."""
    with suppress(*UNDECODABLE):
        if path.is_file():
            return _header(path)[0]
    return None


def common_size(paths: Sequence[Path], folder: Path) -> tuple[int, int]:
    """Returns width and height of images of equal size in ``folder``, read from the first that can be opened.

    Raises:
        DataError: no image can be opened.
    """
    size = next(filter(None, map(image_size, paths)), None)
    if size is not None:
        return size
    if paths:
        foreign = foreign_kind(paths[0])
        remedy = f": it {foreign}" if foreign else "; copy them again"
        raise DataError(f"None of the {len(paths)} images such as {paths[0]} can be opened{remedy}")
    found = Counter(path.suffix or path.name for path in folder.iterdir()) if folder.is_dir() else {}
    holds = ", ".join(f"{count} {suffix}" for suffix, count in found.items()) or "nothing"
    raise DataError(f"{folder} has no image with an expected name; it holds {holds}. Copy or rename the images again")


def _header(path: Path) -> tuple[tuple[int, int], str | None, bool]:
    """Width and height of an image as it is stored, its format, and whether a tag tells viewers to turn it."""
    with Image.open(path) as image:
        width, height = image.size
        if width * height > _MAX_PIXELS:
            raise ValueError(f"{width}x{height} are more pixels than any camera has")
        if image.mode in _UNBOUNDED:
            raise ValueError(f"pixel type '{image.mode}' has no fixed range: convert the image to 8 or 16 bits")
        turned = image.format in _TAGGED and image.getexif().get(_ORIENTATION, 1) != 1
        return (width, height), image.format, turned


def image_fault(path: Path, size: tuple[int, int], *, remedy: str = UNPACK) -> str | Remark | None:
    """Returns the fault of the image at ``path``, expected to have ``size`` (width, height) pixels, or None.

    Only the header and the last bytes are read: a truncated JPEG or PNG file lacks its end marker. One that lacks it
    for another reason, such as bytes behind it, is decoded. Damage inside the file is found by the decoder later, since
    decoding every image of a data set takes hours. A remark tells of an image that is tagged with an orientation.
    """
    if not path.is_file():
        return f"the image is missing{_instead(path)}; {remedy}"
    try:
        found, kind, turned = _header(path)
        with path.open("rb") as file:
            file.seek(-min(_TAIL, path.stat().st_size), 2)
            tail = file.read().rstrip(b"\0")
    except UNDECODABLE as error:
        return f"the image cannot be opened ({_short(error, path)}); {remedy}"
    if found != size:
        return f"the image is {found[0]}x{found[1]} pixels, and {size[0]}x{size[1]} are expected; {remedy}"
    marker = _END_MARKERS.get(kind or "")
    if marker and not tail.endswith(marker) and not _ends_within(path, marker):
        return f"the image is truncated (it ends without the {kind} end marker); {remedy}"
    return Remark(1, _TURNED) if turned else None


def _ends_within(path: Path, marker: bytes) -> bool:
    """Whether an image with bytes behind it is whole: it decodes, and has its end marker after its pixels."""
    content = path.read_bytes()
    with suppress(*UNDECODABLE), Image.open(path) as image:
        image.load()
        return marker in content[content.rfind(_JPEG_SCAN) if image.format == "JPEG" else 0 :]
    return False


def image_checks(index: FrameIndex, row: int, *, remedy: str = UNPACK) -> Iterator[Check]:
    """Yields the checks of the images of the frame in ``row``."""
    for image in index.images_of(row).tolist():
        path, (width, height) = index.root / str(index.images.path[image]), index.images.size[image].tolist()
        yield path, partial(image_fault, path, (width, height), remedy=remedy)


def missing_since_indexed(what: str, path: Path) -> MissingDataError:
    """Returns the error for a file, a ``what`` such as "label file", that existed when the data set was indexed."""
    return MissingDataError(
        f"The {what} {path} is missing since the data set was indexed; restore it, or run 'xd3d prepare' again"
    )


def binary_fault(path: Path, what: str, row_bytes: int, rows: int | None = None, *, remedy: str = UNPACK) -> str | None:
    """Returns the fault of a file of fixed-size rows (a ``what``, such as "sweep"), or None.

    It must hold whole rows of ``row_bytes`` bytes: ``rows`` of them if given, else at least one.
    """
    if not path.is_file():
        return f"the {what} is missing{_instead(path)}; {remedy}"
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
    if size == 0:
        return f"the {what} is empty; {remedy}"
    if rows and size != rows * row_bytes and size in (rows, 2 * rows, 4 * rows, 8 * rows):
        return f"the {what} has {size // rows} bytes per point instead of {row_bytes}; convert its numbers, or {remedy}"
    if size % row_bytes:
        return f"the {what} is truncated: {size} bytes is not a multiple of {row_bytes}; {remedy}"
    if rows is not None and size != rows * row_bytes:
        return f"the {what} has {size // row_bytes} entries, its sweep has {rows} points; unpack both again"
    return None


def _instead(path: Path) -> str:
    """Says that there is a file of the name of a missing one in another format."""
    found = next((other.name for suffix in _SUFFIXES if (other := path.with_suffix(suffix)).is_file()), None)
    return f" (there is {found})" if found else ""


def run_checks(checks: Iterable[Check], total: int) -> Faults:
    """Runs ``total`` checks in threads with a progress bar; returns the faults in the order of the checks.

    Remarks are added up, one warning for each kind of them.
    """
    faults, dropped, remarks = [], dict[Path, int](), dict[str, list[tuple[int, Path]]]()
    for path, found in track(_in_threads(checks), "checking files", total, "file"):
        if isinstance(found, str):
            faults.append(FileFault(path=path, reason=found))
        elif found:
            remarks.setdefault(found.what, []).append((found.number, path))
            dropped[path] = found.dropped
    for what, files in remarks.items():
        count = sum(number for number, _ in files)
        log.warning("%d %s; in %d files such as %s (%d)", count, what, len(files), *reversed(files[0]))
    return Faults(faults, dropped)


def _in_threads(checks: Iterable[Check]) -> Iterator[tuple[Path, str | Remark | None]]:
    """Results in order, in windows: bounds the memory, and lets an interrupt take effect early."""
    waiting = iter(checks)
    with ThreadPoolExecutor(_THREADS) as pool:
        while window := list(itertools.islice(waiting, _WINDOW)):
            yield from pool.map(_run, window)


def _run(check: Check) -> tuple[Path, str | Remark | None]:
    path, find_fault = check
    try:
        found = find_fault()
    except OSError as error:
        return path, f"the file cannot be read ({error.strerror}); fix that, or unpack the download again"
    foreign = foreign_kind(path) if isinstance(found, str) else None
    return path, f"this {foreign}" if foreign else found


def _short(error: Exception, path: Path) -> str:
    """The error's text without the path, which stands beside it already."""
    return str(error).replace(repr(str(path)), "").strip(" :")

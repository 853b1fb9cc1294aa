"""Records the input files of each label file, so that a resumed command repeats only what has changed."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..datasets.index import FrameIndex

__all__ = ["STAMPS", "Stamps", "file_stamp", "frame_files"]

STAMPS = "labelled.jsonl"  #: in the folder of the labels


class Stamps:
    """Records what each label file in ``out`` was made from; the last line of a file counts."""

    def __init__(self, out: Path) -> None:
        self._out, self._path = out, out / STAMPS
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        self._whole = not text or text.endswith("\n")
        self._known: dict[str, list[int]] = {}
        for line in text.splitlines():
            with suppress(ValueError, TypeError):  # a truncated line
                name, stamp = json.loads(line)
                self._known[str(name)] = stamp

    def is_up_to_date(self, made: Sequence[Path], sources: Sequence[Path]) -> bool:
        """Returns whether all files ``made`` exist, and the first was made from the current content of ``sources``."""
        try:
            return all(path.is_file() for path in made) and self._known.get(self._name(made[0])) == file_stamp(sources)
        except OSError:
            return False

    def add(self, made: Path, stamp: list[int]) -> None:
        """Records that the file ``made`` was written from sources with ``stamp``."""
        self._known[self._name(made)] = stamp
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{'' if self._whole else chr(10)}{json.dumps([self._name(made), stamp])}\n")
        self._whole = True

    def _name(self, made: Path) -> str:
        return made.relative_to(self._out).as_posix()


def file_stamp(sources: Sequence[Path]) -> list[int]:
    """Returns size, times and inode of each file that exists, which tell it from another file of the same name."""
    stamps: list[int] = []
    for path in sources:
        if path.exists():
            status = path.stat()  # the ctime changes when a file is moved here, even an old one
            stamps += [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return stamps


def frame_files(index: FrameIndex, row: int) -> list[Path]:
    """Returns the files that the prediction of the frame in ``row`` is made from: its sweep and its images."""
    images = index.images.path[index.images_of(row)]
    return [index.root / str(path) for path in (index.frames.sweep[row], *images)]

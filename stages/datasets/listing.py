"""Files of a folder as disks have them: without hidden files, and without the copies that tools leave beside a file.

A Mac writes ``._NAME`` beside every file on a foreign disk; synchronisers and file managers write ``NAME (1)``,
``NAME copy``, ``copy of NAME`` or ``NAME.sync-conflict-...``. Such a copy is left aside where the file that it is a
copy of exists.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "find_stems", "is_hidden", "names_apart", "stems", "without_copies"]

log = logging.getLogger(__name__)

#: Suffixes of camera images, the published one first.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_COPY = re.compile(
    r"^copy (\(\d+\) )?of "
    r"|( ?\(\d+\)| - (copy|kopie|copie|copia)( \(\d+\))?| copy( \d+)?)$"
    r"|( \([^()]*conflict[^()]*\)|[._]sync-conflict-[\w-]+|_conflict-[\w-]+)$",
    re.IGNORECASE,
)


def is_hidden(path: Path) -> bool:
    """Whether the name of ``path`` marks a hidden file, or what a system or an archive leaves beside files."""
    return path.name.startswith((".", "~$")) or path.name in ("__MACOSX", "@eaDir")


def without_copies(paths: Iterable[Path]) -> list[Path]:
    """Returns ``paths`` sorted, without copies of a file that is among them; their number is a warning."""
    found = sorted(paths)
    names = set(found)
    copies = {path for path in found if _COPY.search(path.stem) and _original(path) in names}
    if copies:
        log.warning("%d copies of files are left aside, such as %s", len(copies), min(copies))
    return [path for path in found if path not in copies]


def _original(path: Path) -> Path:
    return path.with_name(_COPY.sub("", path.stem) + path.suffix)


def names_apart(named: Mapping[str, Collection[str]]) -> str | None:
    """Returns a clause that names two kinds of files without a common frame name; None if there are none."""
    for (one, first), (other, second) in combinations(named.items(), 2):
        if first and second and not set(first) & set(second):
            return (
                f"files of {one} and of {other} have no name in common, such as '{min(first)}' and '{min(second)}';"
                " files of one frame need one name: rename or link them (match by nearest time stamp)"
            )
    return None


def find_stems(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Returns the files in ``folder`` with one of ``suffixes`` (in any case) by their names without it.

    Of several files of one name, that with the earlier suffix counts. Empty if the folder does not exist.
    """
    if not folder.is_dir():
        return {}
    stems: dict[str, Path] = {}
    rank = {suffix: index for index, suffix in enumerate(suffixes)}
    files = [path for path in folder.iterdir() if path.suffix.lower() in rank and not is_hidden(path)]
    for path in sorted(
        without_copies(files), key=lambda path: (rank[path.suffix.lower()], path.suffix.isupper(), path)
    ):
        stems.setdefault(path.stem, path)
    return stems


def stems(folder: Path, suffix: str) -> set[str]:
    """Returns the names, without ``suffix``, of the files in ``folder``; empty if it does not exist."""
    return {stem for stem, path in find_stems(folder, [suffix]).items() if path.suffix == suffix}

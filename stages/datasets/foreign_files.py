"""What a file turns out to be that is not what its name says: a pointer, a packed file, a web page, a bag.

Its first bytes tell. Such a file would otherwise be called truncated or damaged, with a remedy that does not help.
"""

import shlex
import zlib
from contextlib import suppress
from pathlib import Path

__all__ = ["BAGS", "LFS_POINTER", "foreign_kind"]

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_HEAD = 4096  #: bytes that are looked at
_ANNEX = b"/annex/objects/"

#: Suffix of a packed file -> its first bytes, and the command that unpacks it. Those of gzip occur in raw sweeps by
#: chance, so what follows must unpack too.
_PACKED = {
    ".gz": (b"\x1f\x8b\x08", "gunzip"),
    ".bz2": (b"BZh91AY&SY", "bunzip2"),
    ".xz": (b"\xfd7zXZ\0", "unxz"),
    ".zst": (b"\x28\xb5\x2f\xfd", "unzstd"),
}

_CONVERT = (
    "convert it to a ROS 2 bag of type mcap, which is read: pip install rosbags; rosbags-convert --src {} --dst NEW"
    " --dst-storage mcap"
)
#: Suffix of a bag that is not read -> its first bytes, and what it is.
BAGS = {
    ".bag": (b"#ROSBAG V", "is a ROS 1 bag"),
    ".db3": (b"SQLite format 3\0", "is a ROS 2 bag of type sqlite3"),
}


def foreign_kind(path: Path, head: bytes | None = None) -> str | None:
    """Returns what ``path`` is in truth and what to do, as a clause ("is ..."); None if it may be what it should be.

    ``head``: the first bytes of the file, if they have been read. A missing file may be there in packed form.
    """
    if head is None:
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
        except FileNotFoundError:
            return _instead_of(path)
        except OSError:
            return None
    head = head[:_HEAD]
    if head.startswith(LFS_POINTER):
        return "is a pointer of Git LFS, not the file itself; get it with: git lfs pull"
    if head.startswith(_ANNEX):
        return "is a pointer of git-annex, not the file itself; get it with: git annex get"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<?xml") and b"<error>" in start):
        return "is a web page, such as a server's message of an error; download the file again"
    for suffix, (magic, what) in BAGS.items():
        if head.startswith(magic):
            source = path.parent if suffix == ".db3" else path  # the folder holds the types
            return f"{what}; {_CONVERT.format(shlex.quote(str(source)))}"
    for suffix, (magic, command) in _PACKED.items():
        if head.startswith(magic) and (suffix != ".gz" or _unpacks(head)):
            return f"is packed ({suffix}); unpack it: {_unpack(path, suffix, command)}"
    return None


def _unpacks(head: bytes) -> bool:
    with suppress(zlib.error):
        return bool(zlib.decompressobj(31).decompress(head)) or len(head) < _HEAD
    return False


def _unpack(path: Path, suffix: str, command: str) -> str:
    packed = path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)
    rename = f"mv {shlex.quote(str(path))} {shlex.quote(str(packed))} && " if packed != path else ""
    return f"{rename}{command} {shlex.quote(str(packed))}"


def _instead_of(path: Path) -> str | None:
    """What is there in place of a missing file: a link to nothing, or the same file packed."""
    if path.is_symlink():
        target = str(path.readlink())
        remedy = "git annex get" if _ANNEX.decode() in target else "restore what it leads to, or the file"
        return f"is a link to {target}, which does not exist; {remedy}"
    for suffix, (_, command) in _PACKED.items():
        packed = path.with_name(path.name + suffix)
        if packed.is_file():
            return f"is there only in packed form; unpack it: {command} {shlex.quote(str(packed))}"
    return None

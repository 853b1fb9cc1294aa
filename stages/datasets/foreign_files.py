"""Recognises files that are not what their names say: Git LFS pointers, compressed files, web pages, bags.

Their first bytes tell. Such a file would otherwise be called truncated or damaged, with a remedy that does not help.
"""

import shlex
import zlib
from contextlib import suppress
from pathlib import Path

__all__ = ["BAGS", "foreign_kind", "is_text"]

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_HEAD = 4096  #: bytes that are looked at
_ANNEX = b"/annex/objects/"
_PRINTABLE, _FEWEST = bytes([*b"\t\n\r", *range(32, 127)]), 64  #: bytes of text, and how many of them make one

#: Suffix of a file with a header -> its first bytes.
_FORMATS = {
    ".npy": (b"\x93NUMPY",),
    ".ply": (b"ply\n", b"ply\r"),
    ".pcd": (b"# .PCD", b"VERSION 0.7", b"VERSION .7"),
    ".las": (b"LASF",),
    ".mcap": (b"\x89MCAP0\r\n",),
}
_RAW = (".bin", ".label")  #: suffixes of files that are neither text nor have a header

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


def foreign_kind(path: Path, head: bytes | None = None, *, sweep: bool = False) -> str | None:
    """Returns a clause ("is ...") with the actual kind of a file and a remedy; None if nothing is wrong.

    ``head``: the first bytes of the file, if they have been read. For a missing file, a dangling link or a compressed
    copy is reported. With ``sweep``, text in a raw file is reported too; otherwise it is accepted, because labels of 8
    bits can look like text.
    """
    if head is None:
        if not path.is_file():  # opening a pipe blocks
            return None if path.exists() else _instead_of(path)
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
        except OSError:
            return None
    head = head[:_HEAD]
    if head.startswith(_LFS_POINTER):
        return "is a pointer of Git LFS, not the file itself; get it with: git lfs pull"
    if head.startswith(_ANNEX):
        return "is a pointer of git-annex, not the file itself; get it with: git annex get"
    if path.suffix.lower() in _RAW:
        for suffix, magics in _FORMATS.items():
            if head.startswith(magics):
                return f"is a {suffix} file; give it that suffix"
        wide = sweep or path.suffix.lower() != ".bin"
        if wide and is_text(head):
            return "is text, and raw numbers are expected; give it the suffix .txt, or save it with numpy"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<?xml") and b"<error>" in start):
        return "is a web page, such as a server's error message; download the file again"
    for suffix, (magic, what) in BAGS.items():
        if head.startswith(magic):
            source = path.parent if suffix == ".db3" else path  # the folder holds the types
            return f"{what}; {_CONVERT.format(shlex.quote(str(source)))}"
    for suffix, (magic, command) in _PACKED.items():
        if head.startswith(magic) and (suffix != ".gz" or _unpacks(head)):
            return f"is packed ({suffix}); unpack it: {_unpack(path, suffix, command)}"
    return None


def is_text(content: bytes) -> bool:
    """Whether ``content`` is of ASCII characters alone, and long enough to tell."""
    return len(content) >= _FEWEST and not content[:_HEAD].translate(None, _PRINTABLE)


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

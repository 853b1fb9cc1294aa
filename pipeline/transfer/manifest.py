"""The manifest of a remote: every file with its size and SHA-256, and what the files are.

``xd3d-share.json`` is written when all files are there. Before the first one is sent, the same content is written as
``xd3d-share.partial.json``: a file with the size given there was sent completely, and is not sent again after a kill.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from ...errors import StoreError

__all__ = ["LARGEST", "MANIFEST", "PLAN", "FileFacts", "Kind", "Manifest", "plain_name", "safe_name"]

MANIFEST = "xd3d-share.json"
PLAN = "xd3d-share.partial.json"
FORMAT = 1
LARGEST = 200_000_000  #: bytes of a manifest, that of a million files
Kind = Literal["cache", "run"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)  # of a cache or run, which becomes that of a folder
_PART = re.compile(r"\w[\w.:@+-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FileFacts(NamedTuple):
    """Bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of a shared cache or run.

    ``name`` is that of its folder in a workspace, ``identity`` tells it from others, and ``facts`` are for people.
    """

    kind: Kind
    name: str
    identity: str
    facts: Mapping[str, Any]
    files: Mapping[str, FileFacts] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Returns the content of its file."""
        facts = {name: getattr(self, name) for name in ("kind", "name", "identity", "facts")}
        files = {name: file._asdict() for name, file in sorted(self.files.items())}
        return (json.dumps({"format": FORMAT, **facts, "files": files}, indent=0) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Manifest":
        """Reads a manifest that anybody may have written; ``where`` names its file in messages.

        Raises:
            StoreError: it is damaged, of a later format, or has a name that could lead out of a folder.
        """
        try:
            values = json.loads(content)
            if (found := values["format"]) != FORMAT:
                raise StoreError(f"{where} has format {found!r}, this version reads {FORMAT}; use a newer xd3d")
            files = {name: FileFacts(file["size"], file["sha256"]) for name, file in values["files"].items()}
            manifest = cls(
                kind=values["kind"],
                name=values["name"],
                identity=values["identity"],
                facts=dict(values["facts"]),
                files=files,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{where} is damaged ({type(error).__name__}: {error}); push again") from error
        manifest._check(where)
        return manifest

    def _check(self, where: str) -> None:
        if unsafe := next((name for name in self.files if not safe_name(name)), None):
            raise StoreError(
                f"{where} names the file {unsafe!r}, which could lead out of its folder; nothing was pulled"
            )
        sound = (
            self.kind in get_args(Kind)
            and isinstance(self.name, str)
            and _NAME.fullmatch(self.name)
            and isinstance(self.identity, str)
            and all(type(file.size) is int and file.size >= 0 for file in self.files.values())
            and all(isinstance(file.sha256, str) and _DIGEST.fullmatch(file.sha256) for file in self.files.values())
        )
        if not sound:
            raise StoreError(f"{where} is damaged (a kind, name, size or SHA-256 is not valid); push again")


def plain_name(folder: str) -> str:
    """Returns the name of a folder with only letters, digits, ``.``, ``_`` and ``-``, as a manifest must have it."""
    if _NAME.fullmatch(folder):
        return folder
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("._-")[:200] or "unnamed"


def safe_name(name: str) -> bool:
    """Returns whether ``name`` is a relative path of plain parts: no ``..``, no hidden files, no other separators."""
    return all(_PART.fullmatch(part) for part in name.split("/"))

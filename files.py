"""Atomic writes (temporary file, fsync, rename), free space, and safe JSON and YAML parsing."""

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

__all__ = [
    "free_bytes",
    "fsync_folder",
    "host_name",
    "optional_path",
    "parse_yaml",
    "read_json",
    "unique_name",
    "write_atomic",
    "write_bytes",
    "write_json",
]

_LONGEST_STEM = 100  #: bytes of the target's name in the name of its partial file; a name may have 255 bytes


def host_name() -> str:
    """Returns the host name, with only characters that are safe in a file name."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())


def optional_path(given: Path | str | None) -> Path | None:
    """Returns ``given`` as a path; None if it is None."""
    return None if given is None else Path(given)


def unique_name() -> str:
    """Returns a name that is unique across machines and processes: ``host~process-random``, without a dot."""
    return f"{host_name()}~{os.getpid()}-{secrets.token_hex(4)}"


def fsync_folder(folder: Path) -> None:
    """Flushes the entries of a folder to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Returns the free bytes on the disk of ``folder``, which need not exist yet."""
    path = folder.absolute()
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.is_dir())).free


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file with ``write``, flushes it, and renames it to ``path``.

    A reader of ``path`` sees the old content or the new one, never a part. The temporary file, ``*.partial``, has a
    unique name, even if several machines write to one folder, and is removed on an error.
    """
    stem = os.fsencode(path.name)[:_LONGEST_STEM].decode(errors="ignore")
    partial = path.with_name(f"{stem}.{unique_name()}.partial")
    try:
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename is None:  # a failed write has no file name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes ``content`` atomically."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; raises ``ValueError`` for NaN and infinity."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises ``FileNotFoundError`` if it is missing and ``ValueError`` if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(text: str, *, words: bool = False) -> Any:
    """Parses a YAML text with the safe loader.

    ``words``: every scalar but null and decimal numbers without leading zeros is a string: ``no``, ``0001`` and
    ``2011_09_26`` are not parsed as false, 1 and 20110926.

    Raises:
        ValueError: the text is invalid (a 13th month, or ``!!bool maybe``), or a key occurs twice in one mapping.
    """
    try:
        return (_Words if words else _UniqueKeys)(text).get_single_data()
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader; it also rejects duplicate keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"found the key {key.value!r} twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


class _Words(_UniqueKeys):
    """The loader for descriptions full of names."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # the base class copies it


for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "0|-?[1-9][0-9]*", list("-0123456789")),
    ("merge", "<<", ["<"]),
):
    _Words.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)

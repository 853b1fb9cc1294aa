"""Files that appear whole or not at all: write beside the target, flush to disk, rename."""

import json
import os
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

__all__ = [
    "fsync_folder",
    "host_name",
    "parse_yaml",
    "read_json",
    "unique_name",
    "write_atomic",
    "write_bytes",
    "write_json",
]

_LONGEST_STEM = 100  #: bytes of a file's own name in that of its partial file; names may have 255 in all


def host_name() -> str:
    """The name of this machine, without the characters that mean something in a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())


def unique_name() -> str:
    """A name that nobody else gives, on any machine: ``host~process-random``, without a dot."""
    return f"{host_name()}~{os.getpid()}-{secrets.token_hex(4)}"


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file beside ``path``, flush it, and rename it into place.

    A reader of ``path`` sees the old content or the new, never a part. On an error the partial file, ``*.partial``, is
    removed. Its name is no other writer's, also where several machines write one folder.
    """
    partial = path.with_name(f"{_stem(path.name)}.{unique_name()}.partial")
    try:
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename is None:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _stem(name: str) -> str:
    """The beginning of a file's name that leaves room for what is appended."""
    return os.fsencode(name)[:_LONGEST_STEM].decode(errors="ignore")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write ``content``, atomically."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused with ``ValueError``."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; ``FileNotFoundError`` passes through, and damage is ``ValueError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, loaded safely.

    Raises:
        ValueError: the parser refuses it, a 13th month among others; or a key occurs twice in one mapping, of which
            the last would be kept without a word.
    """
    try:
        return _UniqueKeys(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(str(error)) from error


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which also refuses a key that occurs twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"found the key {key.value!r} twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node

"""Reads back what a run has in the files of Weights & Biases, which its library only writes and uploads.

A file is a log of LevelDB (github.com/google/leveldb, doc/log_format.md) after a header of 7 bytes: blocks of 32 KiB of
fragments, each with checksum, length and kind; its records are protocol buffers.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["read_history"]

HEADER, BLOCK = 7, 32768  #: bytes; the header of a fragment is as long as that of the file
FIRST, WHOLE, LAST = 2, 1, 4  #: kinds of fragments; 3 is one in the middle


def read_history(path: Path) -> Iterator[dict[str, str]]:
    """Yields each logged row as JSON values by name, up to the last whole one if a kill cut the file short."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _records(path.read_bytes()):
        try:
            items = Record.FromString(data).history.item
        except DecodeError:
            return
        if items:
            yield {"/".join(item.nested_key) or item.key: item.value_json for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    at, record = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # too little for another fragment: padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += HEADER
        if kind == 0 or at + length > len(data):
            return
        record = data[at : at + length] if kind in (FIRST, WHOLE) else record + data[at : at + length]
        at += length
        if kind in (WHOLE, LAST):
            yield record

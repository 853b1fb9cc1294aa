"""Points of a PLY file, ASCII or binary: the x, y and z of its ``vertex`` element, everything else left aside.

The libraries that read PLY are either under the GPL or read meshes and bring 2 MB along, and a cloud needs this much.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ...errors import DataError

__all__ = ["parse_ply"]

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_END = b"end_header"


@dataclass(frozen=True)
class _Element:
    """One element of the header: its rows, and the type of each of its properties (``list`` for a list)."""

    name: str
    rows: int
    properties: dict[str, str]

    @cached_property
    def is_flat(self) -> bool:
        return "list" not in self.properties.values()

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + kind) for name, kind in self.properties.items()])


def parse_ply(content: bytes, path: Path) -> Float32[np.ndarray, "points 3"]:
    """Points of the file ``content``, which was read from ``path``, in the file's units.

    Raises:
        DataError: no PLY, no vertices with x, y and z, lists in or before them, or fewer of them than the header says.
    """
    head, found, body = content.partition(_END)
    body = body.partition(b"\n")[2]
    if not found or not head.startswith(b"ply"):
        raise DataError(f"{path} is no PLY file: it has no header from 'ply' to 'end_header'")
    try:
        order, elements = _parse_header(head.decode(errors="replace"))  # comments are in any language
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"The header of {path} is damaged ({error!r}); write the file again") from error
    names = [element.name for element in elements]
    if "vertex" not in names or not {"x", "y", "z"} <= elements[names.index("vertex")].properties.keys():
        raise DataError(f"{path} has no vertices with x, y and z; its elements are: {', '.join(names) or 'none'}")
    before, vertices = elements[: names.index("vertex")], elements[names.index("vertex")]
    if not all(element.is_flat for element in (*before, vertices)):
        raise DataError(f"{path} has lists in or before its vertices; write the points alone")
    return _ascii(body, before, vertices, path) if not order else _binary(body, before, vertices, path, order)


def _parse_header(head: str) -> tuple[str, list[_Element]]:
    order, elements = None, list[_Element]()
    for words in (line.split() for line in head.splitlines()):
        match words:
            case ["format", name, _]:
                order = _ORDERS[name]
            case ["element", name, rows]:
                elements.append(_Element(name, _count(rows), {}))
            case ["property", "list", *_, name]:
                elements[-1].properties[name] = "list"
            case ["property", kind, name]:
                elements[-1].properties[name] = _TYPES[kind]
    if order is None:
        raise ValueError("no format")
    return order, elements


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"an element of {text} rows")
    return int(text)


def _ascii(body: bytes, before: list[_Element], vertices: _Element, path: Path) -> np.ndarray:
    first = sum(element.rows * len(element.properties) for element in before)
    width = len(vertices.properties)
    words = body.split()[first : first + vertices.rows * width]
    _check_length(len(words) // width, vertices, path)
    try:
        table = np.array(words).astype(np.float64).reshape(vertices.rows, width)
    except ValueError as error:
        raise DataError(f"{path} holds a vertex that is no number ({error}); write the file again") from error
    places = [list(vertices.properties).index(axis) for axis in "xyz"]
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return table[:, places].astype(np.float32)


def _binary(body: bytes, before: list[_Element], vertices: _Element, path: Path, order: str) -> np.ndarray:
    first = sum(element.rows * element.dtype(order).itemsize for element in before)
    dtype = vertices.dtype(order)
    _check_length((len(body) - first) // dtype.itemsize, vertices, path)
    table = np.frombuffer(body, dtype, vertices.rows, first)
    with np.errstate(over="ignore"):
        return np.stack([table[axis].astype(np.float32) for axis in "xyz"], axis=1)


def _check_length(found: int, vertices: _Element, path: Path) -> None:
    if found < vertices.rows:
        raise DataError(
            f"{path} is truncated: its header promises {vertices.rows} vertices, {max(found, 0)} are there;"
            " copy it again"
        )

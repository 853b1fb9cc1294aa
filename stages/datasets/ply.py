"""Properties of the ``vertex`` element of a PLY file, ASCII or binary: x, y and z, or others such as a label.

The libraries that read PLY are under the GPL, or read meshes and weigh 2 MB.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from ...errors import DataError
from .point_files import Choose, coordinates

__all__ = ["parse_ply"]

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_START = re.compile(rb"ply[ \t]*(\r\n|\n|\r)")


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


def parse_ply(content: bytes, path: Path, choose: Choose = coordinates) -> Float64[np.ndarray, "points properties"]:
    """Returns properties of the vertices of ``content``, read from ``path``, in the file's units.

    ``choose`` is given the names of all properties, and returns those to read; x, y and z by default.

    Raises:
        DataError: it is not PLY, has no vertices with x, y and z, has fewer vertices than declared, or has list
            properties in or before the vertices.
    """
    start = _START.match(content)
    end = start and re.compile(rb"[\r\n]end_header[ \t]*" + start[1]).search(content)
    if not end:
        raise DataError(f"{path} is not a PLY file: it has no header from 'ply' to 'end_header'")
    head, body = content[: end.start()], content[end.end() :]
    try:
        order, elements = _parse_header(head.decode(errors="replace"))  # comments are in any language
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"The header of {path} is damaged ({error!r}); write the file again") from error
    kinds = [element.name for element in elements]
    if "vertex" not in kinds:
        raise DataError(f"{path} has no element 'vertex'; its elements are: {', '.join(kinds) or 'none'}")
    named = elements[kinds.index("vertex")].properties
    if not {"x", "y", "z"} <= named.keys():
        raise DataError(f"{path} has no vertices with x, y and z; their properties are: {', '.join(named) or 'none'}")
    before, vertices = elements[: kinds.index("vertex")], elements[kinds.index("vertex")]
    if not all(element.is_flat for element in (*before, vertices)):
        raise DataError(f"{path} has lists in or before its vertices; write the points alone")
    names = list(choose(vertices.properties))
    if not order:
        return _ascii(body, before, vertices, path, names)
    return _binary(body, before, vertices, path, order, names)


def _parse_header(head: str) -> tuple[str, list[_Element]]:
    order, elements = None, list[_Element]()
    for line in re.split(r"[\r\n]+", head):
        match line.split():
            case ["format", name, _]:
                order = _ORDERS[name]
            case ["element", name, rows]:
                elements.append(_Element(name, _count(rows), {}))
            case ["property", "list", _, _, name]:
                _add(elements[-1], name, "list")
            case ["property", kind, name]:
                _add(elements[-1], name, _TYPES[kind])
            case ["format" | "element" | "property", *_]:
                raise ValueError(f"the line '{line}'")
    if order is None:
        raise ValueError("no format")
    return order, elements


def _add(element: _Element, name: str, kind: str) -> None:
    if name in element.properties:
        raise ValueError(f"the property {name} twice")
    element.properties[name] = kind


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"an element of {text} rows")
    return int(text)


def _ascii(body: bytes, before: list[_Element], vertices: _Element, path: Path, names: list[str]) -> np.ndarray:
    first = sum(element.rows for element in before if element.properties)
    rows = [words for line in body.splitlines() if (words := line.split())][first : first + vertices.rows]
    _check_length(len(rows), vertices, path)
    width = len(vertices.properties)
    odd = next((number for number, words in enumerate(rows) if len(words) != width), None)
    if odd is not None:
        raise DataError(
            f"{path} holds {len(rows[odd])} numbers in the line of vertex {odd}, and {width} properties; write it again"
        )
    columns = [list(vertices.properties).index(name) for name in names]
    try:
        values = [[float(words[column]) for column in columns] for words in rows]
        return np.array(values, np.float64).reshape(-1, len(columns))
    except ValueError as error:
        reason = str(error)[:100]
        raise DataError(f"{path} has a vertex that is not a number ({reason}); write the file again") from error


def _binary(
    body: bytes, before: list[_Element], vertices: _Element, path: Path, order: str, names: list[str]
) -> np.ndarray:
    first = sum(element.rows * element.dtype(order).itemsize for element in before)
    dtype = vertices.dtype(order)
    _check_length((len(body) - first) // dtype.itemsize, vertices, path)
    table = np.frombuffer(body, dtype, vertices.rows, first)
    return np.stack([table[name].astype(np.float64) for name in names], axis=1)


def _check_length(found: int, vertices: _Element, path: Path) -> None:
    if found < vertices.rows:
        raise DataError(
            f"{path} is truncated: its header declares {vertices.rows} vertices, and it has {max(found, 0)};"
            " copy it again"
        )

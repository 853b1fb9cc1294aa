"""PLY files as the field's tools write them: three encodings, further properties and elements, and damage."""

from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import DataError
from xd3d.stages.datasets.ply import parse_ply

ROWS = [(1.5, -2.25, 0.5, 200), (3.0, 4.0, -5.0, 7), (0.1, 0.2, 0.3, 0)]
EXPECTED = np.array([row[:3] for row in ROWS], np.float32)
VERTEX = "element vertex 3\nproperty {kind} x\nproperty {kind} y\nproperty {kind} z\nproperty uchar red\n"


def ply(encoding: str, *, kind: str = "float", before: str = "", rows=ROWS) -> bytes:
    """A file of three vertices; ``before`` puts an element of one row of two int16 ahead of them."""
    head = f"ply\nformat {encoding} 1.0\ncomment made by hand\n{before}{VERTEX.format(kind=kind)}"
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if encoding == "ascii":
        lines = ["5 6"] * bool(before) + [" ".join(map(str, row)) for row in rows] + ["3 0 1 2"]
        return (head + "\n".join(lines) + "\n").encode()
    order = "<" if encoding.endswith("little_endian") else ">"
    number = {"float": "f4", "double": "f8"}[kind]
    table = np.array(rows, [("x", order + number), ("y", order + number), ("z", order + number), ("red", "u1")])
    lead = np.array([5, 6], f"{order}i2").tobytes() if before else b""
    return head.encode() + lead + table.tobytes() + b"\x03" + np.arange(3, dtype=f"{order}i4").tobytes()


AHEAD = "element camera 1\nproperty short a\nproperty int16 b\n"


@pytest.mark.parametrize("before", ["", AHEAD])
@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_points_are_read_from_every_encoding(encoding, kind, before):
    points = parse_ply(ply(encoding, kind=kind, before=before), Path("a.ply"))
    np.testing.assert_allclose(points, EXPECTED, rtol=1e-7)


def test_a_comment_may_be_in_any_language():
    content = ply("ascii").replace(b"made by hand", "à la main, 手工".encode())
    np.testing.assert_allclose(parse_ply(content, Path("a.ply")), EXPECTED, rtol=1e-7)


def test_an_ascii_file_may_have_windows_line_ends_and_nan():
    content = ply("ascii", rows=[("nan", 1, 2, 3), *ROWS[1:]]).replace(b"\n", b"\r\n")
    points = parse_ply(content, Path("a.ply"))
    assert np.isnan(points[0, 0])
    np.testing.assert_allclose(points[1:], EXPECTED[1:], rtol=1e-7)


def test_doubles_far_from_the_origin_keep_their_precision():
    rows = [(500_000.125, 5_400_000.0625, 100.03125, 1)] * 3
    for encoding in ("ascii", "binary_big_endian"):
        points = parse_ply(ply(encoding, kind="double", rows=rows), Path("a.ply"))
        np.testing.assert_array_equal(points, [row[:3] for row in rows])


def test_a_comment_may_speak_of_the_end_of_the_header():
    content = ply("binary_little_endian").replace(b"made by hand", b"before end_header\ncomment end_header of old")
    np.testing.assert_allclose(parse_ply(content, Path("a.ply")), EXPECTED, rtol=1e-7)


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_the_first_byte_of_the_points_is_not_taken_for_a_line_end(end):
    head, mark, body = ply("binary_little_endian", rows=[(10, 2, 3, 4), *ROWS[1:]]).partition(b"end_header\n")
    assert body[3:4] != b"\n"
    number = np.frombuffer(b"\n" + body[1:4], "<f4")[0]
    content = head.replace(b"\n", end) + mark[:-1] + end + b"\n" + body[1:]
    assert parse_ply(content, Path("a.ply"))[0].tolist() == [number, 2, 3]


def test_the_last_byte_of_a_binary_cloud_is_needed():
    whole = ply("binary_little_endian").partition(b"\x03\0\0\0\0")[0]
    np.testing.assert_array_equal(parse_ply(whole, Path("a.ply")), EXPECTED)
    with pytest.raises(DataError, match=r"declares 3 vertices.*has 2"):
        parse_ply(whole[:-1], Path("a.ply"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PLY file"),
        (b"ply\nformat ascii 1.0\n", "not a PLY file"),
        (b"ply\nelement vertex 1\nend_header\n", "no format"),
        (b"ply\nformat ascii 1.0\nproperty float x\nend_header\n", "header of a.ply is damaged"),
        (b"ply\nformat ascii 1.0\nelement vertex many\nend_header\n", "header of a.ply is damaged"),
        (b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", "header of a.ply is damaged"),
        (b"ply\nformat zip 1.0\nend_header\n", "header of a.ply is damaged"),
        (b"ply\nformat ascii 1.0\nend_header\n", "no element 'vertex'; its elements are: none"),
        (
            ply("ascii").replace(b"property float z\n", b"property float Z\n"),
            "with x, y and z; .*: x, y, Z",
        ),
        (ply("ascii").replace(b"uchar red", b"list uchar int red"), "lists in or before"),
        (ply("ascii").replace(b"-2.25", b"two"), "not a number"),
        (ply("ascii").replace(b"-2.25", b"x" * 10_000_000), "not a number"),
        (ply("ascii").replace(b"3.0 4.0", b"3.0 4.0 4.5"), "5 numbers in the line of vertex 1, and 4 properties"),
        (ply("ascii").replace(b"uchar red", b"float x"), "property x twice"),
        (ply("ascii").replace(b"uchar red", b"uchar red extra"), "the line 'property uchar red extra'"),
        (ply("ascii").replace(b"vertex 3", b"vertex 9"), "declares 9 vertices, and it has 4"),
        (
            ply("binary_little_endian", before=AHEAD).replace(b"camera 1", b"camera 99"),
            "declares 3 vertices, and it has 0",
        ),
    ],
)
def test_damage_is_named(content, message):
    with pytest.raises(DataError, match=message):
        parse_ply(content, Path("a.ply"))

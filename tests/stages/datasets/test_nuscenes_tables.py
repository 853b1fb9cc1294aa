"""Tables are read row by row, whatever their layout and wherever a piece of the file ends."""

import json

import pytest
from xd3d.errors import DataError
from xd3d.stages.datasets import nuscenes_tables
from xd3d.stages.datasets.nuscenes_tables import stream_rows

ROWS = [
    {"token": f"t{number}", "name": "äöü ] , {", "pose": [1.5, -2e-3, None], "key": number % 2 == 0}
    for number in range(50)
]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("piece", [120, 1000, 1 << 22])
def test_rows_come_back_equal(tmp_path, monkeypatch, indent, piece):
    monkeypatch.setattr(nuscenes_tables, "_CHUNK", piece)
    path = tmp_path / "sample.json"
    path.write_text("\n" + json.dumps(ROWS, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(stream_rows(path)) == ROWS
    path.write_text("[]")
    assert list(stream_rows(path)) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[", b'[{"token": "a"}', b'[{"token": "a"}, {"tok', b'[{"token": }]', b'[{"token": "a" \xff}]'],
)
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "sample_data.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"sample_data\.json.*JSON"):
        list(stream_rows(path))


def test_damage_in_a_large_table_is_found_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(nuscenes_tables, "_CHUNK", 1000)
    path = tmp_path / "ego_pose.json"
    path.write_text(json.dumps([*ROWS, *ROWS]).replace('"t3"', '"t3" t', 1))
    rows = stream_rows(path)
    assert [next(rows)["token"] for _ in range(3)] == ["t0", "t1", "t2"]
    with pytest.raises(DataError, match="JSON"):
        next(rows)

import pytest
from xd3d.errors import DataError
from xd3d.pipeline.ablation.rows import RowFile


def test_rows_come_back_as_they_were_written(tmp_path, drawn):
    file = RowFile(tmp_path / "rows.jsonl")
    for row in drawn:
        file.append(row)
    assert RowFile(tmp_path / "rows.jsonl").rows == drawn == file.rows


def test_a_line_cut_short_is_dropped_and_the_next_row_follows_the_last_whole_one(tmp_path, drawn):
    path = tmp_path / "rows.jsonl"
    for row in drawn[:2]:
        RowFile(path).append(row)
    path.write_bytes(path.read_bytes()[:-20])
    file = RowFile(path)
    assert file.rows == drawn[:1]
    file.append(drawn[2])
    assert RowFile(path).rows == [drawn[0], drawn[2]]


def test_rows_of_another_version_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"shift": "fog", "variant": "full"}\n')
    with pytest.raises(DataError, match="move it away"):
        RowFile(tmp_path / "rows.jsonl")

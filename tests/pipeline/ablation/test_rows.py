import json
from dataclasses import asdict

import pytest
from xd3d.errors import DataError
from xd3d.pipeline.ablation.rows import RowFile


def test_rows_come_back_as_they_were_written(tmp_path, drawn):
    file = RowFile(tmp_path / "rows.jsonl")
    for row in drawn:
        file.append(row)
    assert RowFile(tmp_path / "rows.jsonl").rows == drawn == file.rows


def test_a_row_from_before_there_was_a_fused_reading_opens_and_leaves_it_open(tmp_path, drawn):
    old = asdict(drawn[0])
    for name in ("miou", "source_miou"):
        del old[name]["fused"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(old) + "\n")
    [row] = RowFile(tmp_path / "rows.jsonl").rows
    assert row.miou == {**drawn[0].miou, "fused": None}
    assert row.source_miou == {**drawn[0].source_miou, "fused": None}


def test_a_line_cut_short_is_dropped_and_the_next_row_follows_the_last_whole_one(tmp_path, drawn):
    path = tmp_path / "rows.jsonl"
    for row in drawn[:2]:
        RowFile(path).append(row)
    path.write_bytes(path.read_bytes()[:-20])
    file = RowFile(path)
    assert file.rows == drawn[:1]
    file.append(drawn[2])
    assert RowFile(path).rows == [drawn[0], drawn[2]]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": [1]},
        {"miou": None},
        {"miou": {"2d": None, "3d": 0.5, "xm": None}},
        {"miou": {"2d": None, "3d": 0.5, "fused": None, "xm": None}},
        {"miou": {"2d": None, "3d": float("nan"), "3d_lidar_only": None, "xm": None}},
        {"iou": {"road": 1}},
        {"an unknown key": 1},
    ],
)
def test_lines_that_are_no_rows_are_refused_with_the_way_out(tmp_path, drawn, change):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**asdict(drawn[0]), **change}) + "\n")
    with pytest.raises(DataError, match="move it away"):
        RowFile(tmp_path / "rows.jsonl")

import json
from dataclasses import asdict

import numpy as np
import pytest
from xd3d.errors import DataError
from xd3d.pipeline.ablation.rows import MEAN, RowFile, ScoreTable, summarise
from xd3d.pipeline.ablation.tables import format_values


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


@pytest.fixture
def table(drawn):
    return ScoreTable(drawn, ["fog", "night"])


def picked(rows, variant, shift, reading="3d"):
    return np.array([100 * r.miou[reading] for r in rows if (r.variant, r.shift) == (variant, shift)])


def test_mean_and_deviation_of_a_cell_are_numpys(table, drawn):
    values = picked(drawn, "full", "fog", "xm")
    summary = summarise(table.scores("full", "xm", "fog"))
    assert summary == pytest.approx((values.mean(), values.std(ddof=1)))
    assert format_values(table.scores("full", "xm", "fog")) == f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def test_the_mean_over_shifts_deviates_over_seeds_not_over_shifts(table, drawn):
    values = (picked(drawn, "full", "fog") + picked(drawn, "full", "night")) / 2
    summary = summarise(table.scores("full", "3d", MEAN))
    assert summary == pytest.approx((values.mean(), values.std(ddof=1)))


def test_a_seed_that_lacks_a_shift_is_not_in_the_mean_over_shifts(table):
    assert sorted(table.scores("rank-4", "3d", MEAN)) == [1, 2]
    assert sorted(table.scores("rank-4", "3d", "fog")) == [1, 2, 3]


def test_gains_are_paired_by_seed(table, drawn):
    expected = picked(drawn, "full", "night", "xm") - picked(drawn, "3d-only", "night", "3d")
    gains = table.gains("full", "xm", "night", over="3d-only", over_output="3d")
    np.testing.assert_allclose(list(gains.values()), expected)
    assert sorted(table.gains("rank-4", "3d", "night", over="full")) == [1, 2]


def test_a_reading_that_does_not_exist_is_said_as_a_dash(make_row):
    table = ScoreTable([make_row("fog", "full-refine", 1, three=50)], ["fog"])
    assert format_values(table.scores("full-refine", "3d_lidar_only", "fog")) == "-"
    assert format_values(table.scores("full-refine", "3d", "fog")) == "50.0"


def test_a_class_that_is_absent_for_a_seed_is_left_out(make_row):
    rows = [
        make_row("fog", "full", seed, three=50, iou={"car": {"3d": value}}) for seed, value in ((1, 0.25), (2, None))
    ]
    assert ScoreTable(rows, ["fog"]).class_scores("full", "3d", "car", MEAN) == {1: 25.0}

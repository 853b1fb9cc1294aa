import numpy as np
import pytest
from xd3d.pipeline.ablation.board import MEAN, Board, Summary, said


@pytest.fixture
def board(drawn):
    return Board(drawn, ["fog", "night"])


def picked(rows, variant, shift, reading="3d"):
    return np.array([100 * r.miou[reading] for r in rows if (r.variant, r.shift) == (variant, shift)])


def test_mean_and_deviation_of_a_cell_are_numpys(board, drawn):
    values = picked(drawn, "full", "fog", "xm")
    summary = Summary.of(board.scores("full", "xm", "fog"))
    assert summary.mean == pytest.approx(values.mean())
    assert summary.deviation == pytest.approx(values.std(ddof=1))
    assert said(board.scores("full", "xm", "fog")) == f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def test_the_mean_over_shifts_deviates_over_seeds_not_over_shifts(board, drawn):
    values = (picked(drawn, "full", "fog") + picked(drawn, "full", "night")) / 2
    summary = Summary.of(board.scores("full", "3d", MEAN))
    assert (summary.mean, summary.deviation) == pytest.approx((values.mean(), values.std(ddof=1)))


def test_a_seed_that_lacks_a_shift_is_not_in_the_mean_over_shifts(board):
    assert sorted(board.scores("rank-4", "3d", MEAN)) == [1, 2]
    assert sorted(board.scores("rank-4", "3d", "fog")) == [1, 2, 3]


def test_gains_are_paired_by_seed(board, drawn):
    expected = picked(drawn, "full", "night", "xm") - picked(drawn, "3d-only", "night", "3d")
    gains = board.gains("full", "xm", "night", over="3d-only", over_reading="3d")
    np.testing.assert_allclose(list(gains.values()), expected)
    assert sorted(board.gains("rank-4", "3d", "night", over="full")) == [1, 2]


def test_a_reading_that_does_not_exist_is_said_as_a_dash(make_row):
    board = Board([make_row("fog", "full-refine", 1, three=50)], ["fog"])
    assert said(board.scores("full-refine", "3d_lidar_only", "fog")) == "-"
    assert said(board.scores("full-refine", "3d", "fog")) == "50.0"


def test_a_class_that_is_absent_for_a_seed_is_left_out(make_row):
    rows = [
        make_row("fog", "full", seed, three=50, iou={"car": {"3d": value}}) for seed, value in ((1, 0.25), (2, None))
    ]
    assert Board(rows, ["fog"]).class_scores("full", "3d", "car", MEAN) == {1: 25.0}

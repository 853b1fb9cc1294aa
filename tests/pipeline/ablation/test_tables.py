import numpy as np
import pytest
from xd3d.pipeline.ablation import tables
from xd3d.pipeline.ablation.rows import ScoreTable


@pytest.fixture
def scores(drawn):
    return ScoreTable(drawn, ["fog", "night"])


def cells(table, first):
    """The cells of the row whose first cell begins with ``first``, in the last table of ``table`` that has it."""
    lines = [line for line in table.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in lines[-1].strip("|").split("|")][1:]


def test_the_loss_across_a_shift_is_source_less_target(scores, drawn):
    rows = [row for row in drawn if (row.variant, row.shift) == ("3d-only", "night")]
    lost = np.array([100 * (row.source_miou["3d"] - row.miou["3d"]) for row in rows])
    assert cells(tables.loss_table(scores), "3d-only, 3D")[-1].endswith(f"({lost.mean():.1f} ± {lost.std(ddof=1):.1f})")


def test_a_claim_holds_on_the_shifts_where_the_gain_is_large_enough_old_and_new_counted_apart(make_row):
    rows = [
        make_row(shift, variant, 1, three=three, two=30.0, lidar=lidar, fused=three + 1)
        for shift, gain, lost in (("fog", 8.0, 1.0), ("night", 7.9, 1.1), ("snow", 9.0, 0.5))
        for variant, three, lidar in (("3d-only", 40.0, 40.0), ("full", 40.0 + gain, 40.0 - lost))
    ]
    table = tables.claims_table(ScoreTable(rows, ["fog", "night", "snow"]), {"snow"})
    assert cells(table, "3D of full above 3d-only by 8") == ["+8.0 yes", "+7.9 no", "+9.0 yes", "1 of 2", "1 of 1"]
    assert cells(table, "without a camera") == ["-1.0 yes", "-1.1 no", "-0.5 yes", "1 of 2", "1 of 1"]
    assert cells(table, "fused at most 1 below the best") == ["+1.0 yes"] * 3 + ["2 of 2", "1 of 1"]
    assert cells(table, "UDA above full, 3D") == ["-", "-", "-", "-", "-"]


@pytest.mark.parametrize(("best", "gain"), [("two", -4.0), ("three", -1.0), ("lidar", -2.0)])
def test_the_fused_reading_is_held_against_the_best_of_the_others(make_row, best, gain):
    scores = {"two": 30.0, "three": 50.0, "lidar": 40.0, best: 49.0 - gain}
    row = make_row("fog", "full", 1, fused=49.0, **scores)
    table = tables.claims_table(ScoreTable([row], ["fog"]), ())
    assert cells(table, "fused at most 1 below the best")[0] == f"{gain:+.1f} {'yes' if gain >= -1 else 'no'}"


def test_a_shift_without_runs_of_both_variants_does_not_count_against_a_claim(make_row):
    rows = [make_row(shift, "full", 1, three=40.0) for shift in ("fog", "night")]
    table = tables.claims_table(ScoreTable([*rows, make_row("fog", "uda", 1, three=41.0)], ["fog", "night"]), ())
    assert cells(table, "UDA above full, 3D") == ["+1.0 yes", "-", "1 of 1", "-"]


def test_a_sweep_is_compared_with_the_method_in_as_many_steps(scores, drawn):
    def mean(variant):
        scores = {(row.shift, row.seed): 100 * row.miou["3d"] for row in drawn if row.variant == variant}
        return np.array([(scores["fog", seed] + scores["night", seed]) / 2 for seed in (1, 2)])

    gain = mean("rank-4") - mean("full-400")
    assert cells(tables.sweep_tables(scores), "`rank-4`")[5] == f"{gain.mean():+.1f} ± {gain.std(ddof=1):.1f}"


def test_the_headline_has_lidar_alone_and_what_was_trained(scores, drawn):
    table = tables.headline_table(scores)
    for first, variant, reading in (("LiDAR alone", "3d-only", "3d"), ("with cached features, fused", "full", "fused")):
        values = [100 * row.miou[reading] for row in drawn if (row.variant, row.shift) == (variant, "fog")]
        assert cells(table, first)[0] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert "labels" not in table


def test_the_fused_reading_is_tabled_beside_the_others(scores, drawn):
    values = np.array([100 * row.miou["fused"] for row in drawn if (row.variant, row.shift) == ("full", "fog")])
    said = f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
    fused = tables.main_tables(scores).split("**fused**")[1].split("**")[0]
    assert cells(fused, "`full`")[0] == said
    assert cells(tables.loss_table(scores), "full, fused")[1].startswith(said)
    assert "**fused above the 3D score of 3d-only**" in tables.gain_tables(scores)


def test_variants_that_did_not_run_have_no_line(scores):
    assert "oracle" not in tables.main_tables(scores)
    assert "full-random-weights" in tables.main_tables(scores)

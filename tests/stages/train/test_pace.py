import pytest
from xd3d.stages.train.pace import PACE_NAMES, RECENT, Pace, StepPace


def test_the_bar_looks_back_over_a_few_steps_and_the_summary_over_all():
    pace = Pace()
    for _ in range(80):
        pace.add(StepPace(seconds=2.0, waited=1.0, frames=4, points=1000))
    for _ in range(RECENT):
        pace.add(StepPace(seconds=0.5, waited=0.0, frames=4, points=1000))
    assert pace.postfix() == {"frames/s": "8.00", "wait": "0%"}
    assert "400 frames in 170 s: 2.35 frames/s, 588 points/s, 47.1 % of it waiting" in pace.summary()


def test_a_step_says_its_rates_and_its_share_of_waiting():
    record = StepPace(seconds=2.0, waited=0.5, frames=3, points=700).record()
    assert tuple(record) == PACE_NAMES
    assert list(record.values()) == pytest.approx([2.0, 0.25, 1.5, 350.0])


def test_a_run_without_a_step_left_has_a_summary():
    assert "No step" in Pace().summary()

import numpy as np
import pytest
from xd3d.errors import RunError
from xd3d.stages.train.monitor import (
    PATIENCE,
    RECENT,
    TIMING_KEYS,
    WINDOW,
    CubeWatch,
    DivergenceWatch,
    StepTiming,
    Throughput,
)


def test_the_bar_looks_back_over_a_few_steps_and_the_summary_over_all():
    pace = Throughput()
    for _ in range(80):
        pace.add(StepTiming(seconds=2.0, waited=1.0, frames=4, points=1000))
    for _ in range(RECENT):
        pace.add(StepTiming(seconds=0.5, waited=0.0, frames=4, points=1000))
    assert pace.postfix() == {"frames/s": "8.00", "wait": "0%"}
    assert "400 frames in 170 s: 2.35 frames/s, 588 points/s, 47.1 % of it waiting" in pace.summary()


def test_a_step_says_its_rates_and_its_share_of_waiting():
    record = StepTiming(seconds=2.0, waited=0.5, frames=3, points=700).record()
    assert tuple(record) == TIMING_KEYS
    assert list(record.values()) == pytest.approx([2.0, 0.25, 1.5, 350.0])


def test_points_outside_the_cube_are_counted_and_warned_of_once_when_they_are_many(caplog):
    watch = CubeWatch()
    watch.add(inside=99_500, outside=500)
    assert caplog.text == ""
    for _ in range(3):
        watch.add(inside=0, outside=1500)
    assert caplog.text.count("model.full_scale") == 1
    assert "2.0 %" in caplog.text
    assert "5000 points (4.8 %)" in watch.summary()
    assert CubeWatch().summary() == ""


def test_a_run_without_a_step_left_has_a_summary():
    assert "No steps" in Throughput().summary()


RNG = np.random.default_rng(0)
LEARNING = 4 * np.exp(-np.arange(400) / 100) + 0.3 + 0.2 * RNG.random(400)


def first_alarm(losses, watch=None):
    watch = watch or DivergenceWatch()
    for step, loss in enumerate(losses, 1):
        try:
            watch.check(step, float(loss))
        except RunError as error:
            return step, str(error)
    return None


@pytest.mark.parametrize("level", [8.0, 1e6])
def test_a_loss_that_jumps_up_and_stays_there_is_named_with_the_remedy(level):
    step, message = first_alarm([*LEARNING, *(level + RNG.random(300))])
    assert 400 + PATIENCE <= step <= 400 + PATIENCE + WINDOW
    assert f"at step {step}" in message
    assert "lower train.lr" in message


def test_a_run_that_rises_from_its_start_is_named():
    step, _ = first_alarm(np.linspace(2, 60, 1000))
    assert step < 500


@pytest.mark.parametrize(
    "losses",
    [
        LEARNING,
        [*LEARNING, *np.where(np.arange(500) % 30 == 0, 1.0, 50.0)],  # good batches between bad ones
        [*LEARNING, *np.full(PATIENCE - 1, 9.0), *LEARNING[100:]],
        [*LEARNING, *np.full(500, 1.5)],  # worse than its best, better than its start
        np.geomspace(5, 1e-6, 2000) * RNG.lognormal(0, 1, 2000),  # learnt by heart, and noisy
        4 + RNG.random(2000),  # never learns anything
    ],
    ids=["learns", "spikes", "recovers", "a hard stretch", "overfits", "flat"],
)
def test_it_is_silent_while_there_is_hope(losses):
    assert first_alarm(losses) is None


def test_a_resumed_run_is_watched_as_an_unbroken_one():
    losses = [float(loss) for loss in [*LEARNING, *np.full(300, 9.0)]]
    step, message = first_alarm(losses)
    behind = 437
    resumed = DivergenceWatch(losses[:behind])
    again, other = first_alarm(losses[behind:], resumed)
    assert behind + again == step
    assert other.replace(f"step {again}", f"step {step}") == message

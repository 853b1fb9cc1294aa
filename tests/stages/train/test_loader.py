import threading
import time

import pytest
import torch
from xd3d.errors import ConfigError
from xd3d.stages.train.loader import prefetched, step_positions, training_batch
from xd3d.stages.train.settings import AugmentSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_epoch_sees_each_frame_once_and_drops_the_rest():
    steps = [step_positions(10, 3, 1, step) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        seen = [position for batch in epoch for position in batch]
        assert len(set(seen)) == 9
    assert steps[:3] != steps[3:]
    assert [step_positions(10, 3, 2, step) for step in range(3)] != steps[:3]


def test_a_batch_larger_than_the_domain_is_refused_with_the_setting():
    with pytest.raises(ConfigError, match=r"8 frames.*has 3.*train\.batch_size to 3"):
        step_positions(3, 8, 1, 0)


def test_batches_do_not_depend_on_the_number_of_threads(make_domain, make_network):
    domain = make_domain(frames=5, points=100)
    plan = make_network(domain).plan

    def make(step):
        return training_batch(domain, plan, AugmentSettings(), batch_size=2, seed=4, step=step)

    alone = [batch for batch, _ in prefetched(make, range(6), 0)]
    for workers in (1, 3):
        for one, other in zip(alone, prefetched(make, range(6), workers), strict=True):
            assert one.keys == other[0].keys
            assert torch.equal(one.voxels.indices, other[0].voxels.indices)
            assert torch.equal(one.labels, other[0].labels)
            assert torch.equal(one.images.maps["up2"], other[0].images.maps["up2"])
    late = [batch for batch, _ in prefetched(make, range(3, 6), 2)]
    assert torch.equal(late[0].voxels.indices, alone[3].voxels.indices), "a resumed run must go on with the same batch"


def test_work_is_done_ahead_and_in_order():
    started = []

    def make(number):
        started.append(number)
        time.sleep(0.01 * (5 - number))
        return number

    found = []
    for number, waited in prefetched(make, range(5), 2):
        assert waited >= 0
        found.append(number)
    assert found == [0, 1, 2, 3, 4]
    assert sorted(started) == [0, 1, 2, 3, 4]


def test_an_error_comes_out_when_its_turn_comes_and_no_thread_stays():
    def make(number):
        if number == 2:
            raise ValueError("broken frame")
        return number

    stepwise = prefetched(make, range(9), 3)
    assert [next(stepwise)[0], next(stepwise)[0]] == [0, 1]
    with pytest.raises(ValueError, match="broken frame"):
        next(stepwise)
    stopped = prefetched(make, range(9), 3)
    next(stopped)
    stopped.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("xd3d-loader")]

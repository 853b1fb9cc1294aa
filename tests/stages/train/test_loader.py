import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.errors import ConfigError
from xd3d.prefetch import map_ahead
from xd3d.stages.train.loader import WINDOW, Use, epoch_order, generator, step_positions, training_batch
from xd3d.stages.train.settings import AugmentSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_epoch_sees_each_frame_once_and_drops_the_rest():
    steps = [step_positions(10, 3, 1, step) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        seen = [position for batch in epoch for position in batch]
        assert len(set(seen)) == 9
    assert steps[:3] != steps[3:]
    assert [step_positions(10, 3, 2, step) for step in range(3)] != steps[:3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 50), st.integers(0, 3))
def test_a_shuffle_by_blocks_gives_each_frame_once_and_stays_within_few_blocks(frames, block, seed, epoch):
    order = epoch_order(frames, seed, epoch, block)
    assert sorted(order.tolist()) == list(range(frames))
    again = epoch_order.__wrapped__(frames, seed, epoch, block)
    np.testing.assert_array_equal(order, again)
    if block < frames:
        for first in range(0, frames, WINDOW * block):
            blocks = np.unique(order[first : first + WINDOW * block] // block)
            assert len(blocks) <= WINDOW + 1, "one more where the last block is short"


def test_a_shuffle_by_blocks_mixes_blocks_and_differs_between_epochs_and_seeds():
    order = epoch_order(1000, 1, 0, 10)
    assert len(np.unique(order[:16] // 10)) > 4
    assert not np.array_equal(order, epoch_order(1000, 1, 1, 10))
    assert not np.array_equal(order, epoch_order(1000, 2, 0, 10))
    steps = [step_positions(1000, 7, 1, step, 10) for step in range(142)]
    assert [position for step in steps for position in step] == order[:994].tolist()


def test_a_batch_larger_than_the_domain_is_refused_with_the_setting():
    with pytest.raises(ConfigError, match=r"8 frames.*has 3.*train\.batch_size to 3"):
        step_positions(3, 8, 1, 0)


def test_batches_do_not_depend_on_the_number_of_threads(make_domain, make_network):
    domain = make_domain(frames=5, points=100)
    plan = make_network(domain).plan

    def make(step, slot):
        return training_batch(domain, plan, AugmentSettings(), batch_size=2, seed=4, step=step)

    alone = [batch for batch, _ in map_ahead(make, range(6), 0)]
    for workers in (1, 3):
        for one, other in zip(alone, map_ahead(make, range(6), workers), strict=True):
            assert one.keys == other[0].keys
            assert torch.equal(one.voxels.indices, other[0].voxels.indices)
            assert torch.equal(one.labels, other[0].labels)
            assert torch.equal(one.images.maps["up2"], other[0].images.maps["up2"])
    late = [batch for batch, _ in map_ahead(make, range(3, 6), 2)]
    assert torch.equal(late[0].voxels.indices, alone[3].voxels.indices), "a resumed run must go on with the same batch"


INDICES = {Use.ORDER: 2, Use.SAMPLE: 3, Use.FORWARD: 1}  #: how many indices each use has


def first(seed, use, *indices):
    return generator(seed, use, *indices).integers(2**63)


def test_no_two_streams_share_their_numbers():
    seen = [
        first(seed, use, *indices)
        for seed in (0, 1, 2, 2**32, 2**32 + 1)
        for use, count in INDICES.items()
        for indices in itertools.product((0, 1, 2, 3), repeat=count)
    ]
    assert len(set(seen)) == len(seen)


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.sampled_from(Use), st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
def test_a_stream_is_the_same_whenever_it_is_made_and_differs_with_a_zero_more(seed, use, indices):
    assert first(seed, use, *indices) == first(seed, use, *indices)
    assert first(seed, use, *indices) != first(seed, use, *indices, 0)

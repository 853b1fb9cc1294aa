import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.stages.train.streams import Use, generator

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

import re
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from xd3d.cache.loader import load_batches
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import named_arrays
from xd3d.errors import CacheError
from xd3d.prefetch import map_ahead, ring_slots

BATCHES = [[0, 17, 3], [4, 5], [9], [1, 2, 3, 4, 5], [17, 17, 17], [8, 6], [12, 13, 14]] * 3


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xd3d-loader")]


def assert_rows(reader, features, rows, features_of_rows):
    expected = named_arrays(features_of_rows(rows))
    for name, values in named_arrays(features).items():
        np.testing.assert_array_equal(values, expected[name].astype(values.dtype))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_of_any_size_come_in_order_and_are_whole_while_the_consumer_has_them(cache, features_of_rows, threads):
    reader = FeatureReader(cache)
    with closing(load_batches(reader, BATCHES, threads=threads)) as batches:
        for rows, features in zip(BATCHES, batches, strict=True):
            assert_rows(reader, features, rows, features_of_rows)
            time.sleep(0.01)  # the threads fill every other slot meanwhile
            assert_rows(reader, features, rows, features_of_rows)
    assert not loader_threads()


def test_memory_is_bounded_by_the_ring_and_used_again(cache):
    reader = FeatureReader(cache)
    seen = Counter(f.geometry.__array_interface__["data"][0] for f in load_batches(reader, [[0, 1]] * 60, threads=2))
    assert len(seen) <= ring_slots(2)
    assert sum(seen.values()) == 60


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_slot_is_filled_again_only_after_its_batch_was_let_go(threads):
    ring = [-1] * ring_slots(threads)

    def make(number, slot):
        ring[slot] = number
        return number, slot

    for (number, slot), waited in map_ahead(make, range(40), threads):
        assert waited >= 0
        deadline = time.monotonic() + 5
        ahead = min(40 - 1, number + len(ring) - 1)
        while ahead not in ring and time.monotonic() < deadline:
            time.sleep(0.0005)
        assert ring[slot] == number, "the batch in use was overwritten"
        assert ahead in ring, "every free slot must be filled meanwhile"
        assert max(ring) == ahead, "more was made than the ring holds"


def test_an_error_is_raised_when_its_turn_comes_and_no_thread_stays(cache):
    reader = FeatureReader(cache)
    batches = load_batches(reader, [[0], [1], [99], [2]], threads=3)
    assert [len(next(batches).geometry), len(next(batches).geometry)] == [1, 1]
    with pytest.raises(CacheError, match="Row 99"):
        next(batches)
    assert not loader_threads()


def test_closing_early_stops_the_threads():
    made = map_ahead(lambda number, slot: number, range(10**9), 3)
    assert next(made)[0] == 0
    assert loader_threads()
    made.close()
    assert not loader_threads()


def test_work_is_done_ahead_and_in_order():
    started = []

    def make(number, slot):
        started.append(number)
        time.sleep(0.01 * (5 - number))
        return number

    assert [number for number, _ in map_ahead(make, range(5), 2)] == [0, 1, 2, 3, 4]
    assert sorted(started) == [0, 1, 2, 3, 4]


def test_the_example_of_the_docs_works(cache, features_of_rows):
    page = Path(__file__).parents[2] / "docs" / "caches.md"
    names = {}
    exec(re.search(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL).group(1), names)
    expected = [features_of_rows(rows).maps["up1"].astype("f2").mean() for rows in ([0, 5, 3], [7, 1, 2])]
    assert names["means"](cache, [[0, 5, 3], [7, 1, 2]]) == pytest.approx(expected, abs=1e-3)

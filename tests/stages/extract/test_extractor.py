"""Batches follow the memory there is, and memory that was used once is used again."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from xd3d.errors import BackendError
from xd3d.stages.extract.extractor import LARGEST_BATCH, FeatureExtractor, fitting_batch

FAULTS = """
import resource, torch
from xd3d.stages.extract.extractor import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fresh = faults()
assert keep_freed_memory()
print(fresh, min(faults() for _ in range(5)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_used_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    fresh, kept = map(int, done.stdout.split())
    assert fresh > 50_000
    assert kept < 0.05 * fresh


def test_a_batch_is_the_power_of_two_that_fits():
    assert [fitting_batch(free, 100) for free in (50, 125, 249, 250, 500, 1100)] == [1, 1, 1, 2, 4, 8]
    assert fitting_batch(10**12, 1) == LARGEST_BATCH


class Room:
    """A GPU that has room for so many images at a time; everything beside that is real."""

    def __init__(self, images):
        self.images, self.sizes, self.compute = images, [], FeatureExtractor._features

    def features(self, extractor, pictures, keys):
        self.sizes.append(len(keys))
        if len(keys) > self.images:
            raise torch.OutOfMemoryError("no room")
        return self.compute(extractor, pictures, keys)


def test_a_batch_without_room_is_done_in_halves_and_later_ones_too(settings, monkeypatch, caplog):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 3, 100, 180), dtype=np.uint8)
    keys = [str(i) for i in range(6)]
    extractor = FeatureExtractor(settings=settings(batch_size=8))
    whole = extractor(pictures, keys)
    room = Room(2)
    monkeypatch.setattr(FeatureExtractor, "_features", lambda self, *batch: room.features(self, *batch))
    with caplog.at_level(logging.WARNING, "xd3d"):
        halves = extractor(pictures, keys)
    assert room.sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "continuing with 3" in caplog.text
    assert extractor.batch_size == 1
    assert halves.rows == list(range(6))
    for name, values in whole.arrays.items():
        if name.startswith("features/"):
            np.testing.assert_allclose(halves.features().maps[name[9:]], values, rtol=2e-3, atol=1e-3)


def test_no_room_for_one_image_is_said(settings, monkeypatch):
    extractor = FeatureExtractor(settings=settings(batch_size=1))
    room = Room(0)
    monkeypatch.setattr(FeatureExtractor, "_features", lambda self, *batch: room.features(self, *batch))
    with pytest.raises(BackendError, match="out of memory for one image"):
        extractor(np.zeros((1, 3, 100, 180), np.uint8), ["a"])

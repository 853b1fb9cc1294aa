"""The online source keeps the order it is asked in and refuses what it cannot compute."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from xd3d.cache.schema import named_arrays
from xd3d.errors import ModelError
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
from xd3d.stages.extract.online import OnlineExtractor


def test_rows_come_in_the_order_asked_for(settings, make_index):
    source = OnlineExtractor(index=make_index(4), settings=settings(batch_size=1))
    assert (source.agents, list(source.taps)) == (12, ["up0", "up1", "up2", "up3", "rgb"])
    forth, back = source.read([0, 1, 2, 3]), source.read([3, 2, 1, 0])
    for name, values in forth.maps.items():
        np.testing.assert_array_equal(values[::-1], back.maps[name])
    assert np.array_equal(source.read([2, 2]).maps["rgb"][0], forth.maps["rgb"][2])


def test_frames_without_images_give_arrays_without_rows(settings, make_index):
    source = OnlineExtractor(index=make_index(1), settings=settings())
    none, one = (named_arrays(source.read(rows)) for rows in ([], [0]))
    assert none.keys() == one.keys()
    for name, values in none.items():
        assert (values.shape, values.dtype) == ((0, *one[name].shape[1:]), one[name].dtype)


def test_threads_that_read_at_once_get_the_features_of_their_own_rows(settings, make_index):
    source = OnlineExtractor(index=make_index(4), settings=settings(batch_size=1))
    alone = [source.read([row]) for row in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda row: source.read([row]), [0, 1, 2, 3] * 4))
    for number, found in enumerate(together):
        for name, values in found.maps.items():
            np.testing.assert_array_equal(values, alone[number % 4].maps[name])


def test_features_that_are_not_finite_are_refused(settings, make_index, monkeypatch):
    source = OnlineExtractor(index=make_index(2), settings=settings())
    encode = DiffusionBackbone.encode

    def poisoned(self, pictures):
        latents = encode(self, pictures)
        latents[1] = torch.nan
        return latents

    monkeypatch.setattr(DiffusionBackbone, "encode", poisoned)
    with pytest.raises(ModelError, match=r"image0-1 \(features/up0.*extract\.dtype float32"):
        source.read([0, 1])

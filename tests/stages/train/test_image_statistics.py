import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from xd3d.stages.train.image_statistics import FAR, ImageStatistics


def counted(values, sizes):
    statistics = ImageStatistics(values.shape[1])
    for part in torch.from_numpy(values).float().split(sizes):
        statistics.update(part)
    return statistics


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 2**31))
def test_running_moments_are_those_of_all_images_however_they_were_batched(sizes, seed):
    values = np.random.default_rng(seed).normal(1e3, [1e-2, 1.0, 1e3], (sum(sizes), 3)).astype("f4")
    statistics = counted(values, sizes)
    np.testing.assert_allclose(statistics.mean, values.mean(0, dtype="f8"), rtol=1e-9)
    np.testing.assert_allclose(statistics.squares / len(values), values.var(0, dtype="f8"), rtol=1e-6)
    assert statistics.count == len(values)


def test_distance_is_one_on_the_images_that_were_counted_and_grows_with_the_shift():
    values = np.random.default_rng(0).normal(5, 2, (200, 40)).astype("f4")
    statistics = counted(values, [50] * 4)
    images = torch.from_numpy(values)
    assert statistics.distance(images).square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    for shift in (1, 3):
        expected = np.sqrt((((values + 2 * shift - values.mean(0)) / values.std(0)) ** 2).mean(1))
        np.testing.assert_allclose(statistics.distance(images + 2 * shift), expected, rtol=1e-3)


def test_images_like_the_sources_have_full_weight_and_others_less_the_farther_they_are():
    values = np.random.default_rng(0).normal(5, 2, (200, 40)).astype("f4")
    statistics = counted(values, [100, 100])
    images = torch.from_numpy(values)
    assert (statistics.weights(images) == 1).all()
    far, farther = statistics.weights(images + 10), statistics.weights(images + 20)
    assert (far < 1).all()
    assert (farther < far).all()
    np.testing.assert_allclose(far, FAR / statistics.distance(images + 10), rtol=1e-5)


def test_before_any_image_was_counted_every_one_has_full_weight():
    assert ImageStatistics(3).weights(torch.randn(2, 3)).tolist() == [1, 1]

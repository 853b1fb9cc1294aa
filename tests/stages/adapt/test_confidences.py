import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.stages.adapt.pseudo_labels import Confidences, confidence_codes, is_confident


def kept_by(labels, confidences, classes):
    codes = confidence_codes(confidences)
    counted = Confidences(classes)
    for part in np.array_split(np.arange(len(labels)), 3):
        counted.add(labels[part], codes[part])
    return is_confident(labels, codes, counted.thresholds())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 200))
def test_the_surer_half_of_each_class_is_kept_and_all_that_are_nearly_certain(seed, points):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, points).astype(np.uint8)
    confidences = np.round(rng.choice([rng.random(points), 1 - rng.random(points) ** 4]) * 65535) / 65535
    expected = np.ones(points, bool)
    for number in range(3):
        mine = labels == number
        if mine.any():
            expected[mine] = confidences[mine] >= min(np.sort(confidences[mine])[(mine.sum() - 1) // 2], 0.9)
    np.testing.assert_array_equal(kept_by(labels, confidences, 3), expected)


def test_a_class_of_certain_points_is_kept_whole_and_one_of_doubtful_points_by_half():
    labels = np.repeat(np.array([0, 1], np.uint8), 4)
    confidences = np.array([0.91, 0.95, 0.99, 1.0, 0.2, 0.3, 0.4, 0.5])
    assert kept_by(labels, confidences, 3).tolist() == [True] * 4 + [False, True, True, True]


def test_confidences_are_kept_to_five_digits():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    assert confidence_codes(values).astype(float) / 65535 == pytest.approx(values, abs=1e-5)

"""Confusion matrix and IoU, against scikit-learn, the devkit's evaluation and a loop over points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score
from xd3d.errors import DataError
from xd3d.stages.datasets.labels import IGNORE
from xd3d.stages.evaluate.confusion import class_iou, confusion_matrix, mean_iou

CLASSES = 6


@pytest.fixture
def drawn():
    """Labels with ignored points, and predictions with some outside the list."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, CLASSES, 5000)
    predictions = np.where(rng.random(5000) < 0.7, labels, rng.integers(0, CLASSES, 5000))
    labels[rng.random(5000) < 0.1] = IGNORE
    return labels, predictions


def iou_by_loop(labels, predictions, number):
    """Count hits, misses and false alarms of one class, point by point."""
    hits = misses = alarms = 0
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        if label == IGNORE:
            continue
        hits += label == number and prediction == number
        misses += label == number and prediction != number
        alarms += label != number and prediction == number
    total = hits + misses + alarms
    return hits / total if total else float("nan")


def test_counts_equal_sklearn(drawn):
    labels, predictions = drawn
    kept = labels != IGNORE
    expected = sklearn_confusion(labels[kept], predictions[kept], labels=range(CLASSES))
    found = confusion_matrix(labels, predictions, CLASSES)
    np.testing.assert_array_equal(found[:, :CLASSES], expected)
    assert not found[:, CLASSES].any()


def test_iou_equals_sklearns_jaccard(drawn):
    labels, predictions = drawn
    kept = labels != IGNORE
    expected = jaccard_score(labels[kept], predictions[kept], labels=range(CLASSES), average=None)
    np.testing.assert_allclose(class_iou(confusion_matrix(labels, predictions, CLASSES)), expected)


def test_iou_equals_the_devkits_evaluation(drawn):
    from nuscenes.eval.lidarseg.utils import ConfusionMatrix

    labels, predictions = drawn
    devkit = ConfusionMatrix(CLASSES + 1, ignore_idx=0)  # the devkit counts from 1 and ignores 0
    devkit.update(np.where(labels == IGNORE, 0, labels + 1), predictions + 1)
    found = class_iou(confusion_matrix(labels, predictions, CLASSES))
    np.testing.assert_allclose(found, devkit.get_per_class_iou()[1:], rtol=1e-6)
    assert mean_iou(found) == pytest.approx(devkit.get_mean_iou(), rel=1e-6)


counts = st.lists(st.sampled_from([0, 0, 0, 1, 2, 1000, 3 * 10**9]), min_size=16, max_size=16).filter(any)


@settings(max_examples=50, deadline=None)
@given(counts)
def test_iou_of_any_confusion_is_that_of_sklearn_and_of_the_devkit(drawn_counts):
    """Classes that are absent, only labelled or only predicted, alone, rare beside billions, or never right."""
    from nuscenes.eval.lidarseg.utils import ConfusionMatrix

    confusion = np.array(drawn_counts, np.int64).reshape(4, 4)
    found = class_iou(np.pad(confusion, ((0, 0), (0, 1))))
    devkit = ConfusionMatrix(5, ignore_idx=0)
    devkit.global_cm = np.pad(confusion, ((1, 0), (1, 0)))
    np.testing.assert_allclose(found, devkit.get_per_class_iou()[1:], rtol=1e-6)  # it divides by a float32
    assert mean_iou(found) == pytest.approx(devkit.get_mean_iou(), rel=1e-6)
    labels, predictions = np.indices((4, 4)).reshape(2, -1)
    weights = confusion.ravel()
    expected = jaccard_score(labels, predictions, labels=range(4), average=None, sample_weight=weights, zero_division=0)
    np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=1e-12)


points = st.lists(st.tuples(st.sampled_from([IGNORE, 0, 1, 2]), st.integers(-2, 4)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(points)
def test_iou_equals_a_loop_over_points(drawn_points):
    labels = np.array([label for label, _ in drawn_points], np.int64)
    predictions = np.array([prediction for _, prediction in drawn_points], np.int64)
    found = class_iou(confusion_matrix(labels, predictions, 3))
    np.testing.assert_allclose(found, [iou_by_loop(labels, predictions, n) for n in range(3)])


def test_a_prediction_outside_the_list_counts_as_an_error():
    labels = np.array([0, 0, 1, 1])
    inside = class_iou(confusion_matrix(labels, np.array([0, 0, 1, 1]), 2))
    outside = class_iou(confusion_matrix(labels, np.array([0, 7, 1, -1]), 2))
    assert inside.tolist() == [1.0, 1.0]
    assert outside.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("absent", "expected"), [("exclude", 0.75), ("zero", 0.5), ("one", 0.75 * 2 / 3 + 1 / 3)])
def test_an_absent_class_counts_as_the_rule_says(absent, expected):
    iou = class_iou(confusion_matrix(np.array([0, 0, 1]), np.array([0, 0, 1]), 3))
    iou[1] = 0.5
    assert np.isnan(iou[2])
    assert mean_iou(iou, absent) == pytest.approx(expected)


def test_a_class_that_is_only_predicted_is_present_with_zero():
    iou = class_iou(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 2))
    assert iou.tolist() == [0.5, 0.0]


def test_small_integer_types_do_not_overflow():
    labels = np.full(100, 199, np.uint8)
    assert confusion_matrix(labels, labels, 200)[199, 199] == 100


def test_nothing_to_score_is_refused():
    with pytest.raises(DataError, match="no labelled point"):
        mean_iou(class_iou(confusion_matrix(np.array([IGNORE]), np.array([0]), 2)))


def test_a_label_outside_the_classes_is_refused_with_its_value():
    with pytest.raises(DataError, match=r"Label 6 is.*of 6 classes"):
        confusion_matrix(np.array([6]), np.array([0]), CLASSES)
    with pytest.raises(DataError, match="Label -1 "):
        confusion_matrix(np.array([-1]), np.array([0]), CLASSES)

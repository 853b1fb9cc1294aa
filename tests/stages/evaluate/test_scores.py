"""Scores over frames: 2D, 3D and xM, the majority baseline, and what is refused."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score
from xd3d.errors import DataError
from xd3d.stages.datasets.labels import IGNORE
from xd3d.stages.evaluate.scores import FramePrediction, majority_miou, score_frames

NAMES = ("vehicle", "road", "terrain")


def softmax(values):
    exponential = np.exp(values - values.max(axis=1, keepdims=True))
    return (exponential / exponential.sum(axis=1, keepdims=True)).astype(np.float32)


def draw(rng, points, columns=3):
    labels = rng.integers(0, 3, points)
    labels[rng.random(points) < 0.1] = IGNORE
    hint = np.eye(columns)[np.clip(labels, 0, None)]
    return FramePrediction(
        labels=labels,
        probabilities_2d=softmax(rng.normal(size=(points, columns)) + hint),
        probabilities_3d=softmax(rng.normal(size=(points, columns)) + 2 * hint),
    )


@pytest.fixture
def frames():
    rng = np.random.default_rng(5)
    return [draw(rng, points) for points in (700, 300, 0, 11)]


def test_scores_of_all_frames_equal_sklearn_on_all_points(frames):
    card = score_frames(frames, NAMES)
    labels = np.concatenate([f.labels for f in frames])
    kept = labels != IGNORE
    p2d = np.concatenate([f.probabilities_2d for f in frames]).astype(np.float64)
    p3d = np.concatenate([f.probabilities_3d for f in frames]).astype(np.float64)
    for modality, probabilities in {"2d": p2d, "3d": p3d, "xm": p2d + p3d}.items():
        expected = jaccard_score(labels[kept], probabilities.argmax(1)[kept], labels=range(3), average=None)
        np.testing.assert_allclose([card.iou[name][modality] for name in NAMES], expected, rtol=1e-12)
        assert card.miou[modality] == pytest.approx(expected.mean())
    assert card.points == kept.sum()
    assert card.frames == 4


def test_the_order_of_frames_does_not_matter(frames):
    assert score_frames(frames, NAMES).miou == score_frames(frames[::-1], NAMES).miou


def test_xm_follows_the_surer_of_both():
    frame = FramePrediction(
        labels=np.array([0, 1]),
        probabilities_2d=np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]], np.float32),
        probabilities_3d=np.array([[0.4, 0.6, 0.0], [0.1, 0.9, 0.0]], np.float32),
    )
    card = score_frames([frame], NAMES)
    assert card.miou == {"2d": pytest.approx(0.25), "3d": pytest.approx(0.25), "xm": pytest.approx(1.0)}
    assert card.absent_classes == {"3d": ("terrain",), "2d": ("terrain",), "xm": ("terrain",)}


def test_lidar_alone_has_no_2d_and_no_xm(frames):
    alone = [
        FramePrediction(labels=f.labels, probabilities_2d=None, probabilities_3d=f.probabilities_3d) for f in frames
    ]
    card = score_frames(alone, NAMES)
    assert card.miou == {"2d": None, "3d": score_frames(frames, NAMES).miou["3d"], "xm": None}
    assert card.iou["road"]["2d"] is None


def test_a_column_beyond_the_classes_counts_as_an_error():
    sure = np.eye(4, dtype=np.float32)[[0, 3, 1]]
    frame = FramePrediction(labels=np.array([0, 0, 1]), probabilities_2d=None, probabilities_3d=sure)
    card = score_frames([frame], NAMES)
    assert card.iou["vehicle"]["3d"] == 0.5
    assert card.confusion["3d"][0, 3] == 1


def test_frames_with_and_without_images_are_not_mixed(frames):
    alone = FramePrediction(labels=frames[1].labels, probabilities_2d=None, probabilities_3d=frames[1].probabilities_3d)
    with pytest.raises(DataError, match="Frame 1 has predictions"):
        score_frames([frames[0], alone], NAMES)


def test_probabilities_of_too_few_classes_are_refused(frames):
    with pytest.raises(DataError, match=r"shape \[700, 3\]; 700 labels and 4 classes need \[700, 4\]"):
        score_frames(frames, (*NAMES, "manmade"))


def test_a_diverged_network_is_not_scored(frames):
    frames[1].probabilities_3d[7] = np.nan
    with pytest.raises(DataError, match=r"frame 1 is NaN or infinite at 1 of 300 points"):
        score_frames(frames, NAMES)


def test_no_frame_is_refused():
    with pytest.raises(DataError, match="no frame to score"):
        score_frames([], NAMES)


def test_majority_baseline_equals_predicting_that_class_everywhere():
    source, target = np.array([5, 90, 5]), np.array([40, 60, 100])
    labels = np.repeat(np.arange(3), target)
    constant = np.tile(np.array([0, 1, 0], np.float32), (200, 1))
    frame = FramePrediction(labels=labels, probabilities_2d=None, probabilities_3d=constant)
    expected = score_frames([frame], NAMES).miou["3d"]
    assert majority_miou(source, target) == pytest.approx(expected) == pytest.approx(60 / 200 / 3)


def test_majority_class_that_the_target_lacks_scores_zero():
    assert majority_miou(np.array([9, 1, 0]), np.array([0, 5, 0])) == 0.0


def test_majority_of_unlike_classes_or_of_nothing_is_refused():
    with pytest.raises(DataError, match="3 classes, the target 2"):
        majority_miou(np.array([9, 1, 0]), np.array([0, 5]))
    with pytest.raises(DataError, match="no labelled point"):
        majority_miou(np.array([9, 1]), np.array([0, 0]))


def test_a_point_that_no_image_shows_is_left_out_of_2d_and_is_the_clouds_alone_in_xm():
    frame = FramePrediction(
        labels=np.array([1, 1, 2]),
        probabilities_2d=np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]], np.float32),
        probabilities_3d=np.array([[0.6, 0.4, 0], [0.2, 0.8, 0], [0.2, 0.1, 0.7]], np.float32),
    )
    card = score_frames([frame], NAMES)
    assert card.confusion["2d"].sum() == 1
    assert card.miou["2d"] == card.miou["xm"] == 1
    assert card.points == card.confusion["3d"].sum() == 3

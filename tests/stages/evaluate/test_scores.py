"""Scores over frames: 2D, 3D, xM and fused, the majority baseline, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import jaccard_score
from xd3d.errors import DataError
from xd3d.stages.datasets.labels import IGNORE
from xd3d.stages.evaluate.metrics import Metrics, score_table
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
        probabilities_fused=softmax(rng.normal(size=(points, columns)) + 3 * hint),
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
    fused = np.concatenate([f.probabilities_fused for f in frames]).astype(np.float64)
    for modality, probabilities in {"2d": p2d, "3d": p3d, "xm": p2d + p3d, "fused": fused}.items():
        expected = jaccard_score(labels[kept], probabilities.argmax(1)[kept], labels=range(3), average=None)
        np.testing.assert_allclose([card.iou[name][modality] for name in NAMES], expected, rtol=1e-12)
        assert card.miou[modality] == pytest.approx(expected.mean())
    assert card.points == kept.sum()
    assert card.frames == 4


def test_points_without_usable_coordinates_are_counted(frames):
    card = score_frames([replace(frame, dropped=number) for number, frame in enumerate(frames)], NAMES)
    assert card.to_json()["dropped"] == card.dropped == 6
    assert "6 points have no usable coordinates" in score_table(card)
    assert Metrics.from_json(card.to_json()).dropped == 6
    older = {key: value for key, value in card.to_json().items() if key != "dropped"}
    assert Metrics.from_json(older).dropped == 0
    assert "usable" not in score_table(score_frames(frames, NAMES))


def test_the_order_of_frames_does_not_matter(frames):
    assert score_frames(frames, NAMES).miou == score_frames(frames[::-1], NAMES).miou


def test_xm_follows_the_surer_of_both():
    frame = FramePrediction(
        labels=np.array([0, 1]),
        probabilities_2d=np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]], np.float32),
        probabilities_3d=np.array([[0.4, 0.6, 0.0], [0.1, 0.9, 0.0]], np.float32),
    )
    card = score_frames([frame], NAMES)
    expected = {"2d": pytest.approx(0.25), "3d": pytest.approx(0.25), "xm": pytest.approx(1.0), "fused": None}
    assert card.miou == expected
    assert card.absent_classes == {"3d": ("terrain",), "2d": ("terrain",), "xm": ("terrain",)}


def test_lidar_alone_has_no_2d_and_no_xm(frames):
    alone = [
        FramePrediction(labels=f.labels, probabilities_2d=None, probabilities_3d=f.probabilities_3d) for f in frames
    ]
    card = score_frames(alone, NAMES)
    assert card.miou == {"2d": None, "3d": score_frames(frames, NAMES).miou["3d"], "xm": None, "fused": None}
    assert card.iou["road"]["2d"] is None
    over_the_prior = [
        replace(f, probabilities_fused=whole.probabilities_fused) for f, whole in zip(alone, frames, strict=True)
    ]
    found = score_frames(over_the_prior, NAMES).miou
    assert found == {**card.miou, "fused": score_frames(frames, NAMES).miou["fused"]}


def test_the_class_of_a_point_is_the_fused_one_else_that_of_xm_else_that_of_the_cloud():
    frame = FramePrediction(
        labels=np.array([0]),
        probabilities_2d=np.array([[0.0, 1.0, 0.0]], np.float32),
        probabilities_3d=np.array([[0.5, 0.3, 0.2]], np.float32),
        probabilities_fused=np.array([[0.1, 0.2, 0.7]]),
    )
    for prediction, expected in (
        (frame, 2),
        (replace(frame, probabilities_fused=None), 1),
        (replace(frame, probabilities_fused=None, probabilities_2d=None), 0),
    ):
        assert prediction.decided.tolist() == [expected]


def test_frames_with_and_without_a_fused_prediction_are_not_mixed(frames):
    with pytest.raises(DataError, match="Frame 1 has predictions"):
        score_frames([frames[0], replace(frames[1], probabilities_fused=None)], NAMES)


def test_a_fused_prediction_that_is_nan_is_refused(frames):
    frames[1].probabilities_fused[7] = np.nan
    with pytest.raises(DataError, match=r"frame 1 is.*at 1 of 300 points"):
        score_frames(frames, NAMES)


def test_a_column_beyond_the_classes_counts_as_an_error():
    sure = np.eye(4, dtype=np.float32)[[0, 3, 1]]
    frame = FramePrediction(labels=np.array([0, 0, 1]), probabilities_2d=None, probabilities_3d=sure)
    card = score_frames([frame], NAMES)
    assert card.iou["vehicle"]["3d"] == 0.5
    assert card.confusion["3d"][0, 3] == 1


def test_frames_with_and_without_images_are_not_mixed(frames):
    alone = replace(frames[1], probabilities_2d=None)
    with pytest.raises(DataError, match="Frame 1 has predictions"):
        score_frames([frames[0], alone], NAMES)


def test_probabilities_of_too_few_classes_are_refused(frames):
    with pytest.raises(DataError, match=r"\[700, 3\]; 700 labels and 4 classes.*\[700, 4\]"):
        score_frames(frames, (*NAMES, "manmade"))


def test_a_diverged_network_is_not_scored(frames):
    frames[1].probabilities_3d[7] = np.nan
    with pytest.raises(DataError, match=r"frame 1 is.*at 1 of 300 points"):
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
    with pytest.raises(DataError, match=r"3 classes.*target 2"):
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


def test_parts_by_distance_and_weather_are_scores_of_their_points_alone(frames):
    rng = np.random.default_rng(8)
    placed = [
        replace(frame, distance=rng.uniform(0, 70, len(frame.labels)), weather=weather)
        for frame, weather in zip(frames, ("snow", "rain", "rain", "snow"), strict=True)
    ]
    card = score_frames(placed, NAMES)
    assert card.miou == score_frames(frames, NAMES).miou
    assert list(card.parts) == ["weather", "distance"]
    snow = score_frames([frames[0], frames[3]], NAMES)
    assert card.part_miou["weather"]["snow"] == snow.miou
    for name, (low, high) in {"0-20 m": (0, 20), "20-40 m": (20, 40), "40+ m": (40, np.inf)}.items():
        near = [(frame.distance >= low) & (frame.distance < high) for frame in placed]
        alone = [
            FramePrediction(
                labels=frame.labels[rows],
                probabilities_2d=frame.probabilities_2d[rows],
                probabilities_3d=frame.probabilities_3d[rows],
                probabilities_fused=frame.probabilities_fused[rows],
            )
            for frame, rows in zip(frames, near, strict=True)
        ]
        assert card.part_miou["distance"][name] == score_frames(alone, NAMES).miou
    for parts in card.parts.values():
        for reading in ("xm", "fused"):
            np.testing.assert_array_equal(sum(counts[reading] for counts in parts.values()), card.confusion[reading])
    assert card.to_json()["parts"]["weather"]["snow"]["points"] == snow.points
    assert [line.split()[0] for line in score_table(card).splitlines()[4:]] == [
        "mean",
        "snow",
        "rain",
        "0-20",
        "20-40",
        "40+",
    ]


def test_a_part_without_a_labelled_point_has_no_score(frames):
    near = replace(frames[0], distance=np.full(len(frames[0].labels), 3.0))
    card = score_frames([near], NAMES, absent="zero")
    assert card.part_miou["distance"]["40+ m"] == {"2d": None, "3d": None, "xm": None, "fused": None}
    assert card.part_miou["distance"]["0-20 m"] == card.miou

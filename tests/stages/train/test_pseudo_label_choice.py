"""Which predictions become pseudo labels: by confidence, by the agreement of the heads, and by the vote of an agent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.errors import ConfigError
from xd3d.stages.train.pseudo_label_choice import UNSURE, Candidates, LabelRule, confidence_codes, thresholds

CLASSES = 3


def rows(seed, points, sharpness=0.7):
    return np.random.default_rng(seed).dirichlet(np.full(CLASSES, sharpness), points).astype(np.float32)


def certain(labels, confidences):
    """Predictions of ``labels`` with these confidences."""
    values = np.repeat((1 - np.array(confidences)[:, None]) / 2, CLASSES, axis=1)
    values[np.arange(len(labels)), labels] = confidences
    return values


def kept_by(labels, confidences, eligible=None):
    """Whether points of one head are kept, counted in three parts as those of a file are."""
    made = Candidates(
        labels=np.stack([labels, labels], 1).astype(np.uint8),
        codes=confidence_codes(np.stack([confidences, confidences], 1)),
        eligible=np.stack([np.ones(len(labels), bool) if eligible is None else eligible] * 2, 1),
    )
    parts = np.array_split(np.arange(len(labels)), 3)
    counts = sum(
        Candidates(labels=made.labels[p], codes=made.codes[p], eligible=made.eligible[p]).histogram(CLASSES)
        for p in parts
    )
    return made.confident(thresholds(counts))[:, 1] != UNSURE


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 200), st.booleans())
def test_the_surer_half_of_each_class_is_kept_and_all_that_are_nearly_certain(seed, points, some):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, points)
    confidences = np.round(rng.choice([rng.random(points), 1 - rng.random(points) ** 4]) * 65535) / 65535
    eligible = rng.random(points) < 0.5 if some else np.ones(points, bool)
    expected = eligible.copy()
    for number in range(CLASSES):
        mine = labels == number
        if mine.any():
            expected[mine] &= confidences[mine] >= min(np.sort(confidences[mine])[(mine.sum() - 1) // 2], 0.9)
    np.testing.assert_array_equal(kept_by(labels, confidences, eligible), expected)


def test_a_class_of_certain_points_is_kept_whole_and_one_of_doubtful_points_by_half():
    confidences = np.array([0.91, 0.95, 0.99, 1.0, 0.2, 0.3, 0.4, 0.5])
    assert kept_by(np.repeat([0, 1], 4), confidences).tolist() == [True] * 4 + [False, True, True, True]


def test_confidences_are_kept_to_five_digits():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    assert confidence_codes(values).astype(float) / 65535 == pytest.approx(values, abs=1e-5)


def test_older_confidences_may_count_less():
    """The threshold of a decayed histogram is its weighted median."""
    old, new = (
        Candidates.of(None, certain([0] * 3, found), fused=None, agents=None, rule=LabelRule())
        for found in ([0.5, 0.5, 0.5], [0.8, 0.8, 0.8])
    )
    for decay, expected in ((1.0, 0.5), (0.9, 0.8)):
        least = thresholds(decay * old.histogram(CLASSES) + new.histogram(CLASSES))
        assert least[1, 0] == pytest.approx(expected, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.booleans())
def test_where_heads_must_agree_both_predict_the_label_and_unseen_points_are_exempt(seed, points, with_fused):
    p2, p3, fused = rows([seed, 1], points), rows([seed, 2], points), rows([seed, 3], points)
    shown = np.random.default_rng(seed).random(points) < 0.7
    p2[~shown] = 0
    fused = fused if with_fused else None
    made = Candidates.of(p2, p3, fused=fused, agents=None, rule=LabelRule(agree=True))
    label = (p3 if fused is None else fused).argmax(1)
    np.testing.assert_array_equal(made.labels[:, 1], label)
    expected = ~shown | ((p2.argmax(1) == label) & (p3.argmax(1) == label))
    np.testing.assert_array_equal(made.eligible, np.stack([expected, expected], 1))
    assert (made.labels[~shown, 0] == UNSURE).all()
    free = Candidates.of(p2, p3, fused=fused, agents=None, rule=LabelRule())
    assert free.eligible.all()
    np.testing.assert_array_equal(free.labels, made.labels)
    np.testing.assert_array_equal(free.codes, made.codes)
    assert Candidates.of(None, p3, fused=None, agents=None, rule=LabelRule(agree=True)).eligible.all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_a_label_must_be_the_most_frequent_of_its_agent(seed, points):
    p3, agents = rows(seed, points), np.random.default_rng(seed).integers(-1, 5, points)
    made = Candidates.of(None, p3, fused=None, agents=agents, rule=LabelRule(vote=True))
    for point in range(points):
        mine = made.labels[agents == agents[point], 1]
        frequent = np.bincount(mine, minlength=CLASSES)
        first = frequent.argmax() == made.labels[point, 1]
        assert made.eligible[point, 1] == (agents[point] < 0 or first)


def test_agents_vote_on_the_labels_of_each_head():
    """With the rule ``sum`` each head learns its own class, which the vote of the other head's says nothing about."""
    p2, p3 = certain([0, 0, 2, 0], [0.8] * 4), certain([1, 1, 1, 2], [0.8] * 4)
    made = Candidates.of(p2, p3, fused=None, agents=np.array([5] * 4), rule=LabelRule(vote=True))
    assert made.confident(np.zeros((2, CLASSES))).tolist() == [[0, 1], [0, 1], [UNSURE, 1], [0, UNSURE]]


def test_points_without_an_agent_are_not_voted_on():
    p3 = certain([0, 0, 1, 1, 2], [0.8] * 5)
    made = Candidates.of(None, p3, fused=None, agents=np.array([3, 3, 3, -1, -1]), rule=LabelRule(vote=True))
    assert made.eligible[:, 1].tolist() == [True, True, False, True, True]


def test_more_classes_than_labels_of_8_bits_can_name_are_refused():
    def propose(classes):
        return Candidates.of(None, np.eye(classes), fused=None, agents=None, rule=LabelRule())

    assert propose(255).labels[:, 1].tolist() == list(range(255))
    with pytest.raises(ConfigError, match=r"255 .*256.*data\.merge"):
        propose(256)

"""Fusion of predictions: the rules against plain loops, the prior against its loss, and what never wins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.stages.datasets.labels import class_prior, class_weights
from xd3d.stages.predict.fusion import fused_probabilities
from xd3d.stages.train.losses import weighted_cross_entropy

RULES = ("product-prior", "product", "sum")


def reference(rule, p3, p2=None, lidar=None, weight=None, prior=None):
    """The rules as the module's table has them, a class and a point at a time."""
    out = np.zeros(p3.shape)
    for point in range(len(p3)):
        shown = p2 is not None and max(p2[point]) > 0
        w = 1.0 if weight is None else float(weight[point])
        alone = p3 if lidar is None else lidar
        heads = [] if not shown else [p2] if lidar is None else [p2, p3]
        scores = []
        for column in range(p3.shape[1]):
            if rule == "sum":
                scores.append(math.log(p3[point, column] + (p2[point, column] if shown else 0.0) + 1e-300))
                continue
            divided = 1.0 if rule == "product" or prior is None else prior[column]
            score = math.log(max(alone[point, column], 1e-12)) if divided else -math.inf
            for head in heads if divided else ():
                score += w * (math.log(max(head[point, column], 1e-12)) - math.log(divided))
            scores.append(score)
        powers = [math.exp(score - max(scores)) for score in scores]
        out[point] = [power / sum(powers) for power in powers]
    return out


@st.composite
def cases(draw, dtype=np.float64):
    """Predictions with exact zeros and ones, points without an image, and priors with zeros."""
    points, columns = draw(st.integers(0, 5)), draw(st.integers(2, 6))
    values = st.lists(st.sampled_from([0.0, 1e-30, 1e-7, 0.3, 1.0, 7.0]), min_size=columns, max_size=columns)

    def softmax_like():
        rows = np.array([draw(values.filter(any)) for _ in range(points)], dtype).reshape(points, columns)
        return (rows / rows.sum(axis=1, keepdims=True)).astype(dtype)

    case = {"p3": softmax_like()}
    if draw(st.booleans()):
        case["p2"] = softmax_like()
        case["p2"][[draw(st.booleans()) for _ in range(points)]] = 0
    if draw(st.booleans()):
        case["lidar"] = softmax_like()
    if draw(st.booleans()):
        weights = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
        case["weight"] = np.array([draw(weights) for _ in range(points)], np.float32)
    if draw(st.booleans()):
        counts = np.array(draw(st.lists(st.integers(0, 10**9), min_size=columns, max_size=columns).filter(any)))
        case["prior"] = class_prior(counts, class_weights(counts))
    return case


def fuse(rule, p3, p2=None, lidar=None, weight=None, prior=None):
    return fused_probabilities(
        rule, p3, probabilities_2d=p2, probabilities_lidar=lidar, image_weight=weight, prior=prior
    )


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from(RULES))
def test_every_rule_is_its_formula_and_never_nan(case, rule):
    fused = fuse(rule, **case)
    assert np.isfinite(fused).all()
    np.testing.assert_allclose(fused, reference(rule, **case), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fused.sum(axis=1), 1, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from(RULES), st.randoms())
def test_each_point_is_fused_by_itself(case, rule, random):
    order = list(range(len(case["p3"])))
    random.shuffle(order)
    moved = {name: values if name == "prior" else values[order] for name, values in case.items()}
    np.testing.assert_array_equal(fuse(rule, **moved), fuse(rule, **case)[order])


@settings(max_examples=50, deadline=None)
@given(cases())
def test_over_an_even_prior_the_product_is_the_plain_one(case):
    columns = case["p3"].shape[1]
    even = {**case, "prior": np.full(columns, 1 / columns)}
    np.testing.assert_allclose(fuse("product-prior", **even), fuse("product", **case), rtol=1e-9, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from(["product", "product-prior"]))
def test_an_image_of_no_weight_leaves_the_cloud_alone(case, rule):
    distrusted = {**case, "weight": np.zeros(len(case["p3"]))}
    alone = {name: case[name] for name in ("prior",) if name in case}
    np.testing.assert_allclose(fuse(rule, **distrusted), fuse(rule, case.get("lidar", case["p3"]), **alone), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from(["product", "product-prior"]))
def test_a_point_that_no_image_shows_is_decided_by_the_cloud_alone(case, rule):
    unseen = {**case, "p2": np.zeros_like(case["p3"])}
    alone = {name: case[name] for name in ("prior",) if name in case}
    np.testing.assert_array_equal(fuse(rule, **unseen), fuse(rule, case.get("lidar", case["p3"]), **alone))


@settings(max_examples=50, deadline=None)
@given(cases(np.float32))
def test_the_sum_chooses_the_class_of_xm_ties_included(case):
    both = case["p3"] if "p2" not in case else case["p2"] + case["p3"]
    np.testing.assert_array_equal(fuse("sum", **case).argmax(axis=1), both.argmax(axis=1))


def test_a_class_that_the_source_never_had_does_not_win_over_the_prior():
    sure = np.array([[0.01, 0.98, 0.01]])
    prior = np.array([0.7, 0.0, 0.3])
    assert fuse("product-prior", sure, p2=sure, prior=prior).argmax() == 2
    assert fuse("product", sure, p2=sure, prior=prior).argmax() == 1
    certain = np.array([[0.0, 1.0, 0.0]])
    assert fuse("product-prior", certain, p2=certain, prior=prior)[0, 1] == 0


def test_a_diverged_network_stays_visible():
    broken = np.array([[np.nan, np.nan], [0.5, 0.5]])
    for rule in RULES:
        fused = fuse(rule, broken, p2=np.full((2, 2), 0.5), prior=np.array([0.4, 0.6]))
        assert np.isnan(fused[0]).all()
        assert np.isfinite(fused[1]).all()


def test_the_prior_is_what_weighted_cross_entropy_teaches_a_network_that_sees_nothing():
    """At its logarithm the gradient of the loss over all points, the same logits for each, is zero."""
    counts = np.array([700, 250, 50])
    weights = class_weights(counts)
    logits = torch.tensor(np.log(class_prior(counts, weights)), requires_grad=True)
    labels = torch.from_numpy(np.repeat(np.arange(3), counts))
    weighted_cross_entropy(logits.expand(1000, 3), labels, torch.from_numpy(weights)).backward()
    np.testing.assert_allclose(logits.grad.numpy(), 0, atol=1e-12)


def test_a_rare_class_has_a_floor_and_an_absent_one_no_prior():
    counts = np.array([10**9, 1, 0])
    prior = class_prior(counts, class_weights(counts))
    np.testing.assert_allclose(prior, [1 / 1.01, 0.01 / 1.01, 0], rtol=1e-6)
    assert prior.sum() == pytest.approx(1)

"""The figures of the report on what a network learned, against references, and its pictures."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from xd3d.cache.schema import ImageFeatures
from xd3d.pipeline.config import Config
from xd3d.pipeline.report.analysis import ErrorTally, analysis_sections, errors_picture, mean_agreement
from xd3d.pipeline.report.attention import (
    FrameAttention,
    FrameImages,
    class_agreement,
    dense_memberships,
    striking_columns,
)
from xd3d.pipeline.report.figures import class_colours
from xd3d.pipeline.runs import TrainedRun
from xd3d.stages.datasets.frames import Frame
from xd3d.stages.predict.attention import AttentionMaps, QueryAttention
from xd3d.stages.train.domain import Domain
from xd3d.stages.train.settings import FusionSettings


def test_attention_on_agents_of_the_own_class_agrees_and_even_attention_does_as_chance():
    """Three agents of the classes 0, 1, 1 and one that claims no labelled point."""
    labels, agents = np.array([0, 0, 1, 1, -100]), np.array([0, 0, 1, 2, 3])
    perfect = np.zeros((5, 4), np.float32)
    perfect[[0, 1, 2, 3], [0, 0, 2, 1]] = 1
    assert class_agreement(perfect, agents, labels) == pytest.approx((1.0, (1 / 3 + 2 / 3) / 2))
    even = np.full((5, 4), 0.25, np.float32)
    own, alike = class_agreement(even, agents, labels)
    assert own == pytest.approx(alike)


def test_agreement_follows_its_definition_on_drawn_values():
    rng = np.random.default_rng(2)
    labels, agents = rng.integers(0, 3, 60), rng.integers(0, 8, 60)
    attention = rng.random((60, 8)).astype(np.float32)
    kind = [np.bincount(labels[agents == agent], minlength=3).argmax() for agent in range(8)]
    by_class = []
    for name in range(3):
        rows = attention[labels == name]
        by_class.append((rows[:, np.array(kind) == name].sum(1) / rows.sum(1)).mean())
    assert class_agreement(attention, agents, labels)[0] == pytest.approx(np.mean(by_class), rel=1e-5)


def test_frames_without_a_label_have_no_agreement(look):
    assert class_agreement(np.ones((2, 3), np.float32), np.array([0, 1]), np.full(2, -100)) is None
    unlabelled = replace(look, frame=replace(look.frame, labels=np.full_like(look.frame.labels, -100)))
    assert mean_agreement([look, unlabelled], "located") == mean_agreement([look], "located")
    assert mean_agreement([unlabelled], "located") is None


def test_striking_columns_leave_out_the_sink_and_copies():
    rng = np.random.default_rng(3)
    varied, other = rng.random(100), 0.5 * rng.random(100)
    voxels = np.stack([9 * varied, varied, 0.9 * varied, other, np.full(100, 0.3)], 1).astype(np.float32)
    assert striking_columns(voxels, 2, first=1) == [1, 3]
    assert striking_columns(voxels, 2) == [0, 3]


def test_kept_memberships_lie_at_their_agents_and_sum_to_1():
    rng = np.random.default_rng(6)
    assignment = rng.random((2, 6, 3, 5)).argsort(1)[:, :4].astype(np.uint8)
    membership = rng.integers(1, 256, (2, 4, 3, 5)).astype(np.uint8)
    assignment[0, 2:, 0, 0], membership[0, 2:, 0, 0] = 0, 0  # two agents in all
    dense = dense_memberships(assignment, membership, 6)
    for view, row, column in np.ndindex(2, 3, 5):
        expected = np.zeros(6)
        for agent, weight in zip(assignment[view, :, row, column], membership[view, :, row, column], strict=True):
            expected[agent] += weight / membership[view, :, row, column].sum(dtype=int)
        np.testing.assert_allclose(dense[view, :, row, column], expected, rtol=1e-6)


POINTS = 60


@pytest.fixture
def look():
    """What a network with located agents and queries reads on a frame of two views of 3 agents, in a padded grid.

    Agents lie in thirds of the image, from left to right; the points of a third have a class of their own, and the last
    ten are shown by no view. Points read their own agent, queries look at all alike.
    """
    rng = np.random.default_rng(7)
    third = np.repeat([0, 1, 2], 20)
    view, uv = rng.integers(0, 2, 50), np.stack([(third[:50] + 0.5) / 3, rng.random(50)], 1).astype(np.float32)
    assignment = np.zeros((2, 3, 4, 8), np.float32)
    for agent in range(3):
        assignment[:, agent, :, 2 * agent : 2 * agent + 2] = 1  # the image spans six of the eight columns
    memberships = np.zeros((POINTS, 6), np.float32)
    memberships[np.arange(50), 3 * view + third[:50]] = 1
    even = np.full((POINTS, 4), 0.25, np.float32) + 1e-3 * rng.random((POINTS, 4), np.float32)
    frame = Frame(
        points=rng.random((POINTS, 3), np.float32),
        labels=third.astype(np.int64),
        source_rows=np.arange(POINTS),
        image_rows=np.arange(2),
        projection_point=np.arange(50),
        projection_view=view,
        projection_uv=uv,
    )
    pictures = rng.integers(0, 256, (2, 8, 12, 3)).astype(np.uint8)
    stored = ImageFeatures(maps={}, agents={}, geometry=np.zeros((2, 3, 5), np.float32))
    queries = QueryAttention(
        voxels=even / even.sum(1, keepdims=True),
        queries=np.full((4, 4), 0.25, np.float32),
        agents=np.full((4, 6), 1 / 6, np.float32),
    )
    return FrameAttention(
        frame=frame,
        images=FrameImages(pictures=pictures, stored=stored, assignment=assignment, extent=(3.5, 6.0)),
        insight=AttentionMaps(memberships=memberships, queries=queries),
    )


def test_padding_of_the_grid_is_no_part_of_the_image(look):
    view, third = look.frame.projection_view, look.frame.labels[:50]
    np.testing.assert_array_equal(look.images.agents_of(look.frame)[:50], 3 * view + third)


def test_both_ways_of_reading_agents_are_measured_over_the_points_that_an_image_shows(look):
    assert look.kinds == ("located", "queries")
    own, alike = look.agreement("located")
    assert (own, alike) == pytest.approx((1, 1 / 3))
    even = look.agreement("queries")
    assert even == pytest.approx((1 / 3, 1 / 3))
    assert mean_agreement([look, look], "located") == pytest.approx((1, 1 / 3))
    assert mean_agreement([], "located") is None


@pytest.fixture
def sections(monkeypatch):
    """The sections of the report on a run whose attention was looked at on the given frames."""
    tally = ErrorTally(classes=("a",), points=np.ones((1, 5), int), wrong=np.zeros((1, 5), int))
    monkeypatch.setattr("xd3d.pipeline.report.analysis.tally_errors", lambda *_, **__: tally)
    run = Mock(spec=TrainedRun, config=Config(fusion=FusionSettings(rank=3, queries="agents")))
    run.domain.return_value = Mock(spec=Domain)

    def sections(*frames):
        monkeypatch.setattr("xd3d.pipeline.report.analysis.attention_over", lambda *_: list(frames))
        return analysis_sections(run, "product-prior")

    return sections


@pytest.mark.parametrize("dense", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_section_for_each_way_and_one_for_the_errors(look, sections, dense):
    if dense:
        object.__setattr__(look.insight.queries, "agents", None)
    located, queries, errors = sections(look)
    assert (located.heading, errors.heading) == ("Which agents the points read", "Errors by distance and class")
    assert "100 % of what a point reads is of agents of its own class" in located.text
    assert ("no agents to draw" in queries.text) == dense
    for section in (located, queries, errors):
        assert section.parts[0].png.startswith(b"\x89PNG")


def test_sections_of_frames_without_labels_say_that_labels_are_missing(look, sections):
    unlabelled = replace(look, frame=replace(look.frame, labels=np.full_like(look.frame.labels, -100)))
    for section in sections(unlabelled)[:2]:
        assert "label" in section.text
        assert "no agents to draw" not in section.text


def test_shares_of_errors_are_per_cent_of_the_points_of_class_and_bin():
    points, wrong = np.array([[4, 0], [6, 5]]), np.array([[1, 0], [3, 5]])
    tally = ErrorTally(classes=("car", "road"), points=points, wrong=wrong)
    np.testing.assert_array_equal(tally.shares, [[25, np.nan], [50, 100], [40, 100]])
    picture = errors_picture(tally.shares, "a", tally.classes)
    assert picture.startswith(b"\x89PNG")


def test_classes_of_a_large_label_set_have_colours_of_their_own():
    colours = class_colours([f"class {number}" for number in range(50)])
    assert len(np.unique(colours, axis=0)) == 50

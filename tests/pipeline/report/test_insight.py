import numpy as np
import pytest
from xd3d.pipeline.report.attention import class_agreement, striking_queries
from xd3d.pipeline.report.errors import ErrorTally, errors_picture
from xd3d.pipeline.report.spectrum import dropped_energy, singular_values, spectrum_rows


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


def test_frames_without_a_label_have_no_agreement():
    assert class_agreement(np.ones((2, 3), np.float32), np.array([0, 1]), np.full(2, -100)) == (0.0, 0.0)


def test_striking_queries_leave_out_the_sink_and_copies():
    rng = np.random.default_rng(3)
    varied, other = rng.random(100), 0.5 * rng.random(100)
    voxels = np.stack([9 * varied, varied, 0.9 * varied, other, np.full(100, 0.3)], 1).astype(np.float32)
    assert striking_queries(voxels, 2) == [1, 3]


def test_dropped_energy_is_that_of_the_directions_beyond_the_rank():
    rng = np.random.default_rng(4)
    queries = rng.standard_normal((6, 10)).astype(np.float32)
    values = np.linalg.svd(queries.astype(np.float64), compute_uv=False)
    spectrum = singular_values([queries])
    np.testing.assert_allclose(spectrum, values / np.linalg.norm(values))
    assert dropped_energy(spectrum, 4) == pytest.approx((values[4:] ** 2).sum() / (values**2).sum())
    assert dropped_energy(spectrum, 6) == 0
    assert spectrum_rows({"Q_a": np.array([1.0, 0.0])}, 1) == [["Q_a", "0.00 %", "1"]]


def test_shares_of_errors_are_per_cent_of_the_points_of_class_and_bin():
    points, wrong = np.array([[4, 0], [6, 5]]), np.array([[1, 0], [3, 5]])
    tally = ErrorTally(classes=("car", "road"), points=points, wrong=wrong)
    np.testing.assert_array_equal(tally.shares, [[25, np.nan], [50, 100], [40, 100]])
    difference = tally.shares - 50
    picture = errors_picture({"a": [("x", tally.shares)], "b": [("y", difference)]}, tally.classes)
    assert picture.startswith(b"\x89PNG")

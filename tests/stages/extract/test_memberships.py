"""The memberships that are kept are the largest ones, in one order on every device, and lose what they must."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from xd3d.stages.extract.memberships import as_indices, strongest_memberships


def reference(assignment):
    """Largest first, of equal ones the lower index first; [B, 4, h, w]."""
    order = np.argsort(-assignment, axis=1, kind="stable")[:, :4]
    weights = np.take_along_axis(assignment, order, axis=1)
    missing = [(0, 0), (0, 4 - order.shape[1]), (0, 0), (0, 0)]
    return np.pad(order, missing), np.pad(weights, missing)


def softmax(values):
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("agents", [1, 3, 4, 100, 256, 257, 1000])
def test_they_are_those_of_a_stable_sort_in_8_bits(agents):
    logits = np.random.default_rng(agents).normal(0, 3, (2, agents, 5, 7)).astype(np.float32)
    assignment = softmax(logits.astype(np.float64)).astype(np.float32)
    indices, weights = strongest_memberships(torch.from_numpy(assignment))
    expected, kept = reference(assignment.astype(np.float64))
    found = as_indices(indices)
    assert found.dtype == (np.uint8 if agents <= 256 else np.uint16)
    np.testing.assert_array_equal(found, expected)
    assert weights.dtype == torch.uint8
    assert np.abs(weights.numpy() / 255 - kept).max() <= 0.5 / 255 + 1e-7


def test_of_equal_memberships_the_lower_index_comes_first():
    assignment = torch.zeros(1, 300, 2, 2)
    assignment[:, [299, 7, 40, 2, 260]] = 0.2
    indices, weights = strongest_memberships(assignment)
    assert as_indices(indices)[0, :, 1, 1].tolist() == [2, 7, 40, 260]
    assert weights[0, :, 0, 0].tolist() == [51] * 4
    rest = strongest_memberships(torch.eye(6)[None, :, :, None])[0]
    assert rest[0, :, 3, 0].tolist() == [3, 0, 1, 2]


SHAPES = st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 3), st.just(2))


@given(arrays(np.float32, SHAPES, elements=st.floats(-40, 40, width=32)))
@settings(max_examples=60, deadline=None)
def test_the_weights_of_a_cell_sum_to_one_less_what_is_dropped(logits):
    assignment = torch.softmax(torch.from_numpy(logits), dim=1)
    _, weights = strongest_memberships(assignment)
    decoded = weights.numpy().astype(np.float64).sum(axis=1) / 255
    assert decoded.max() <= 1 + 4 / 510
    dropped = 1 - reference(assignment.numpy().astype(np.float64))[1].sum(axis=1)
    assert np.abs(decoded - (1 - dropped)).max() <= 4 / 510 + 1e-6


def test_nan_becomes_no_weight():
    indices, weights = strongest_memberships(torch.full((1, 5, 1, 1), torch.nan))
    assert int(indices.max()) < 5
    assert not weights.any()

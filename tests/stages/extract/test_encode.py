"""Features are made ready to be stored on the model's device: bit for bit as the numpy code of the cache does it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy_encoder import as_stored, encode
from xd3d.stages.extract.encode import as_indices, encode_e4m3, stored_rows, strongest_memberships

RNG_SEEDS = st.integers(0, 2**32)
CHANNELS = {
    "zeros": lambda rng, n: np.zeros(n),
    "minus zero": lambda rng, n: -np.zeros(n),
    "constant": lambda rng, n: np.full(n, rng.choice([7.001, -65504, 2.0**-24])),
    "mild": lambda rng, n: rng.standard_normal(n),
    "tiny": lambda rng, n: 1e-6 * rng.standard_normal(n),
    "huge": lambda rng, n: 1e5 * rng.standard_normal(n),
    "far": lambda rng, n: 1e4 + rng.standard_normal(n),
    "spikes": lambda rng, n: np.where(rng.random(n) < 0.1, 1e4, rng.standard_normal(n)),
    "ties": lambda rng, n: np.append(448, rng.integers(-64, 64, n - 1) / 512),
}


@st.composite
def maps(draw):
    """Images whose channels differ in kind, float32 [images, channels, height, width]."""
    kinds = draw(st.lists(st.sampled_from(sorted(CHANNELS)), min_size=1, max_size=4))
    images, height, width = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)))
    rng = np.random.default_rng(draw(RNG_SEEDS))
    values = [[CHANNELS[kind](rng, height * width) for kind in kinds] for _ in range(images)]
    return np.array(values, np.float32).reshape(images, len(kinds), height, width)


@settings(max_examples=150, deadline=None)
@given(maps(), st.booleans())
def test_codes_and_scales_are_those_of_the_reference(values, last):
    half = as_stored(values, np.dtype(np.float16))
    if last:
        half = np.ascontiguousarray(half.reshape(*half.shape[:2], -1).transpose(0, 2, 1))
    axis = 2 if last else 1
    codes, scales = encode_e4m3(torch.from_numpy(half), axis)
    expected, expected_scales = encode(half, axis)
    np.testing.assert_array_equal(codes.numpy(), expected)
    np.testing.assert_array_equal(scales.numpy(), expected_scales)


@settings(max_examples=50, deadline=None)
@given(maps())
def test_float16_is_rounded_and_clamped_as_the_reference_does(values):
    stored = stored_rows({"features/up1": torch.from_numpy(values)}, "exact")
    np.testing.assert_array_equal(stored.arrays["features/up1"], as_stored(values, np.dtype(np.float16)))
    counts = {i: n for i, n in enumerate((np.abs(values) > 65504).sum((1, 2, 3)).tolist()) if n}
    assert stored.clamped == ({"features/up1": counts} if counts else {})


@pytest.mark.parametrize("profile", ["exact", "compact"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_fails_and_the_others_are_as_without_it(profile, wrong):
    rng = np.random.default_rng(0)
    features = {
        "features/up1": torch.from_numpy(1e4 * rng.standard_normal((3, 4, 5, 6), np.float32)),
        "features/rgb": torch.from_numpy(rng.integers(0, 256, (3, 3, 9, 9), np.uint8)),
        "agents/up1": torch.from_numpy(rng.standard_normal((3, 7, 4), np.float32)),
        "agents/geometry": torch.from_numpy(rng.random((3, 7, 5), np.float32)),
    }
    features["features/up1"][1, 2, 3, 4] = 1e6
    features["features/up1"][2, 0, 0, 0] = 1e6
    sound = stored_rows(features, profile)
    assert (sound.failed, sound.clamped) == ({}, {"features/up1": {1: 1, 2: 1}})
    features["agents/up1"][1, 6, 3] = wrong
    features["agents/geometry"][1, 0, 0] = wrong
    found = stored_rows(features, profile)
    assert found.failed == {1: "agents/up1 is not finite: 1 values, the first at [6, 3]"}
    assert found.clamped == {"features/up1": {2: 1}}
    for name, values in sound.arrays.items():
        np.testing.assert_array_equal(values[[0, 2]], found.arrays[name][[0, 2]])
        assert values.dtype == (
            np.float32 if "geometry" in name else np.uint8 if name in found_codes(profile) else "f2"
        )


def found_codes(profile):
    return {"features/rgb", *(["features/up1", "agents/up1"] if profile == "compact" else [])}


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
